"""Datasets and their immutable versions."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.core import ids
from webapp.datasets import records  # noqa: F401 - Django looks for an app's models here
from webapp.fleet.models import BaseModel


class DatasetQuerySet(OwnedQuerySet["Dataset"]):
    """Datasets of a project."""


class Dataset(models.Model):
    """A name for rows; its versions hold them."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_dataset_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=120)
    created_at = models.DateTimeField(default=now)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "name"], name="one_dataset_a_name")
        ]

    def __str__(self) -> str:
        return self.name


class DatasetVersionQuerySet(OwnedQuerySet["DatasetVersion"]):
    """Versions of a project's datasets."""


class DatasetVersion(models.Model):
    """Rows that never change once ready, addressed by their content's digest."""

    class Status(models.TextChoices):
        VALIDATING = "validating"
        NEEDS_DECISION = "needs_decision"  # bad lines were found; the user keeps the rest or not
        READY = "ready"
        FAILED = "failed"
        DISCARDED = "discarded"

    class Kind(models.TextChoices):
        """What a row is; `training.data.kinds` says how each is written."""

        CONVERSATION = "conversation"
        PROMPT_COMPLETION = "prompt_completion"
        PREFERENCE = "preference"
        PROMPT = "prompt"  # with a reference answer
        TEXT = "text"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_version_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    status = models.CharField(max_length=20, choices=Status.choices, default=Status.VALIDATING)
    filename = models.CharField(max_length=255)
    format = models.CharField(max_length=10)  # jsonl, csv, parquet
    size_bytes = models.BigIntegerField(default=0)
    upload_path = models.CharField(max_length=500)  # relative to HONE_HOME
    rows_path = models.CharField(max_length=500, blank=True)  # normalised JSONL, once ready
    digest = models.CharField(max_length=64, blank=True)
    num_rows = models.PositiveIntegerField(default=0)
    num_bad = models.PositiveIntegerField(default=0)
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.CONVERSATION)
    # Made from another version: by filters, as a split, or by a served model from documents.
    derived_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, related_name="derived"
    )
    derivation = models.JSONField(default=dict)  # how: filters, split and its seed, generation
    split = models.CharField(max_length=20, blank=True)  # train, held_out; empty: all rows
    # That its rows have been through, this version's own among them: the next one, of a run too,
    # draws by another hash.
    num_splits = models.PositiveSmallIntegerField(default=0)
    report = models.JSONField(default=dict)
    # the user's answer to bad lines; None: not asked, or not answered yet
    keep_valid = models.BooleanField(null=True)
    error = models.TextField(blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)

    objects = DatasetVersionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dataset", "number"], name="one_version_a_number")
        ]

    def __str__(self) -> str:
        return f"{self.dataset} v{self.number}"


class Preview(models.Model):
    """A version's first rows as one base model's tokens, with the loss mask."""

    version = models.ForeignKey(DatasetVersion, on_delete=models.CASCADE, related_name="previews")
    base_model = models.ForeignKey(BaseModel, on_delete=models.CASCADE, related_name="+")
    rows = models.JSONField(null=True)  # null: a worker is making it
    stats = models.JSONField(default=dict)  # tokens a row: mean, longest, too long for the context
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["version", "base_model"], name="one_preview_a_model")
        ]

    def __str__(self) -> str:
        return f"{self.version} by {self.base_model}"
