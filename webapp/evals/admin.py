"""Suites and evaluations in Django's admin, for operators."""

from django.contrib import admin

from webapp.evals.models import EvalSuite, Evaluation


@admin.register(EvalSuite)
class EvalSuiteAdmin(admin.ModelAdmin[EvalSuite]):
    list_display = ("id", "name", "project", "status", "num_items", "created_at")
    list_filter = ("status",)
    list_select_related = ("project",)
    exclude = ("items",)


@admin.register(Evaluation)
class EvaluationAdmin(admin.ModelAdmin[Evaluation]):
    list_display = ("id", "suite", "checkpoint", "status", "num_done", "created_at")
    list_filter = ("status",)
    list_select_related = ("suite", "checkpoint")
