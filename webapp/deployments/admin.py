"""Serving in Django's admin, for operators."""

from django.contrib import admin

from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, Replica, SamplingCall


@admin.register(Deployment)
class DeploymentAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "name", "project", "status", "changed_at")
    list_filter = ("status",)
    list_select_related = ("project",)


@admin.register(DeploymentChange)
class DeploymentChangeAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "deployment", "checkpoint", "status", "created_at", "ended_at")
    list_filter = ("status",)
    list_select_related = ("deployment", "checkpoint")


@admin.register(Replica)
class ReplicaAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("name", "engine", "status", "version", "start", "url", "error")
    list_filter = ("engine", "status")


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
