"""Datasets in Django's admin, for operators."""

from typing import ClassVar

from django.contrib import admin

from webapp.datasets.models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["name", "project", "created_at"]
    list_select_related: ClassVar = ["project"]
    search_fields: ClassVar = ["id", "name"]


@admin.register(DatasetVersion)
class DatasetVersionAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display: ClassVar = ["id", "dataset", "number", "status", "num_rows", "created_at"]
    list_filter: ClassVar = ["status", "format"]
    list_select_related: ClassVar = ["dataset"]
    search_fields: ClassVar = ["id", "dataset__name", "digest"]
    readonly_fields: ClassVar = ["report"]
