"""Datasets in Django's admin, for operators."""

from django.contrib import admin

from webapp.datasets.models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("name", "project", "created_at")
    list_select_related = ("project",)
    search_fields = ("id", "name")


@admin.register(DatasetVersion)
class DatasetVersionAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("id", "dataset", "number", "status", "num_rows", "created_at")
    list_filter = ("status", "format")
    list_select_related = ("dataset",)
    search_fields = ("id", "dataset__name", "digest")
    readonly_fields = ("report",)
