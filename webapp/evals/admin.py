"""Suites and evaluations in Django's admin, for operators."""

from typing import ClassVar

from django.contrib import admin

from webapp.evals.models import EvalSuite, Evaluation


@admin.register(EvalSuite)
class EvalSuiteAdmin(admin.ModelAdmin[EvalSuite]):
    list_display: ClassVar = ["id", "name", "project", "status", "num_items", "created_at"]
    list_filter: ClassVar = ["status"]
    list_select_related: ClassVar = ["project"]
    exclude: ClassVar = ["items"]


@admin.register(Evaluation)
class EvaluationAdmin(admin.ModelAdmin[Evaluation]):
    list_display: ClassVar = ["id", "suite", "checkpoint", "status", "num_done", "created_at"]
    list_filter: ClassVar = ["status"]
    list_select_related: ClassVar = ["suite", "checkpoint"]
