"""Checkpoints in Django's admin, for operators."""

from typing import ClassVar

from django.contrib import admin

from webapp.checkpoints.models import Checkpoint


@admin.register(Checkpoint)
class CheckpointAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["id", "name", "run", "kind", "step", "size_bytes", "created_at"]
    list_filter: ClassVar = ["kind", "is_ephemeral"]
    list_select_related: ClassVar = ["run"]
    search_fields: ClassVar = ["id", "name", "digest"]
    readonly_fields: ClassVar = ["probe"]
