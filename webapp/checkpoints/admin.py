"""Checkpoints in Django's admin, for operators."""

from django.contrib import admin

from webapp.checkpoints.models import Checkpoint, Export, RetentionRule


@admin.register(Checkpoint)
class CheckpointAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "name", "run", "kind", "step", "size_bytes", "created_at")
    list_filter = ("kind", "is_ephemeral", "is_encrypted")
    list_select_related = ("run",)
    search_fields = ("id", "name", "digest")
    readonly_fields = ("probe",)


@admin.register(Export)
class ExportAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "checkpoint", "kind", "precision", "status", "max_difference")
    list_filter = ("kind", "status")
    list_select_related = ("checkpoint",)
    search_fields = ("id", "digest")


@admin.register(RetentionRule)
class RetentionRuleAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("project", "keep", "is_active", "changed_at", "applied_at")
    list_filter = ("is_active",)
    list_select_related = ("project",)
