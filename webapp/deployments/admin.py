"""Serving in Django's admin, for operators."""

from django.contrib import admin

from webapp.deployments.models import Deployment, HotLoad, SamplingCall


@admin.register(Deployment)
class DeploymentAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "name", "project", "status", "changed_at")
    list_filter = ("status",)
    list_select_related = ("project",)


@admin.register(HotLoad)
class HotLoadAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("adapter_name", "server", "status", "max_difference", "created_at")
    list_filter = ("status",)


@admin.register(SamplingCall)
class SamplingCallAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "purpose", "project", "status", "worker", "created_at")
    list_filter = ("status", "purpose")
    list_select_related = ("project",)
    exclude = ("result",)
