"""Serving in Django's admin, for operators."""

from typing import ClassVar

from django.contrib import admin

from webapp.deployments.models import Deployment, HotLoad, SamplingCall


@admin.register(Deployment)
class DeploymentAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["id", "name", "project", "status", "changed_at"]
    list_filter: ClassVar = ["status"]
    list_select_related: ClassVar = ["project"]


@admin.register(HotLoad)
class HotLoadAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["adapter_name", "server", "status", "max_difference", "created_at"]
    list_filter: ClassVar = ["status"]


@admin.register(SamplingCall)
class SamplingCallAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["id", "purpose", "project", "status", "worker", "created_at"]
    list_filter: ClassVar = ["status", "purpose"]
    list_select_related: ClassVar = ["project"]
    exclude: ClassVar = ["result"]
