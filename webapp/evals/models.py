"""Frozen prompt sets, one pass over them by one checkpoint, and single answers."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.checkpoints.models import Checkpoint
from webapp.core import ids
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run


class EvalSuiteQuerySet(OwnedQuerySet["EvalSuite"]):
    """Suites of a project."""


class EvalSuite(models.Model):
    """Prompts, targets, graders and sampling settings that never change once made."""

    class Status(models.TextChoices):
        BUILDING = "building"
        READY = "ready"
        FAILED = "failed"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_suite_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="eval_suites")
    name = models.CharField(max_length=120)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.BUILDING)
    error = models.TextField(blank=True)
    dataset_version = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, related_name="eval_suites"
    )
    # which rows: {"held_out_share", "seed", "limit"}: the same split a run with them held out
    selection = models.JSONField(default=dict)
    graders = models.JSONField(default=list)  # [{"name", ...settings}]; the first one is the score
    sampling = models.JSONField(default=dict)  # max_tokens, temperature (0: greedy), seed
    items = models.JSONField(default=list)  # [{"messages", "target", "row"}]
    num_items = models.PositiveIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)  # of items, graders and sampling
    created_at = models.DateTimeField(default=now)

    objects = EvalSuiteQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "name"], name="one_suite_a_name")
        ]

    def __str__(self) -> str:
        return self.name


class EvaluationQuerySet(OwnedQuerySet["Evaluation"]):
    """Evaluations of a project."""


class Evaluation(models.Model):
    """One pass over a suite by one checkpoint; without a checkpoint, by the base model."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_evaluation_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="evaluations")
    suite = models.ForeignKey(EvalSuite, on_delete=models.PROTECT, related_name="evaluations")
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="+")
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.PROTECT, null=True, related_name="evaluations"
    )
    run = models.ForeignKey(Run, on_delete=models.SET_NULL, null=True, related_name="evaluations")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    error = models.TextField(blank=True)
    served = models.JSONField(default=dict)  # as sampled: with the adapter, digest and template
    num_done = models.PositiveIntegerField(default=0)
    scores = models.JSONField(default=dict)  # {grader: mean}
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.id

    @property
    def first_score(self) -> float | None:
        """By the suite's first grader. None: nothing is graded yet."""
        score: float | None = self.scores.get(self.suite.graders[0]["name"])
        return score


class EvalResult(models.Model):
    """One answer of one evaluation, graded."""

    evaluation = models.ForeignKey(Evaluation, on_delete=models.CASCADE, related_name="results")
    index = models.PositiveIntegerField()
    completion = models.TextField(blank=True)
    num_tokens = models.PositiveIntegerField(default=0)
    stop_reason = models.CharField(max_length=10, blank=True)
    scores = models.JSONField(default=dict)  # {grader: 0..1}
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    digest = models.CharField(max_length=64, blank=True)  # of the weights that answered
    error = models.TextField(blank=True)

    class Meta:
        ordering: ClassVar = ["index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["evaluation", "index"], name="one_result_an_item")
        ]

    def __str__(self) -> str:
        return f"{self.evaluation_id} {self.index}"
