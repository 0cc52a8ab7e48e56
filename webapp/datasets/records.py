"""What is found out about a version, and question-answer pairs on their way to become one."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.core import ids
from webapp.fleet.models import BaseModel


class Analysis(models.Model):
    """A question about a version's rows, answered once: neither changes."""

    class Kind(models.TextChoices):
        FILTERS = "filters"  # how many rows filters keep
        NEAR_DUPLICATES = "near_duplicates"
        LEAKAGE = "leakage"  # rows of another version, or items of a suite, that are here too
        TOKENS = "tokens"  # a row, by one base model
        DIFFERENCE = "difference"  # rows added and removed against another version

    version = models.ForeignKey(
        "datasets.DatasetVersion", on_delete=models.CASCADE, related_name="analyses"
    )
    kind = models.CharField(max_length=20, choices=Kind.choices)
    options = models.JSONField(default=dict)
    key = models.CharField(max_length=64)  # of the options
    result = models.JSONField(null=True)  # null: a worker is at it
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["version", "kind", "key"], name="one_analysis_a_question"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.version}"

    @property
    def is_waiting(self) -> bool:
        return self.result is None and not self.error


class GenerationQuerySet(OwnedQuerySet["Generation"]):
    """Generations of a project."""


class Generation(models.Model):
    """Documents of which a served model makes question-answer pairs, for people to review."""

    class Status(models.TextChoices):
        READING = "reading"  # documents into passages
        ASKING = "asking"
        REVIEW = "review"  # every passage was asked about
        DONE = "done"  # accepted pairs became a version
        FAILED = "failed"
        CANCELLED = "cancelled"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_generation_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="generations")
    name = models.CharField(max_length=120)  # of the dataset
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.READING)
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="+")
    checkpoint = models.ForeignKey(
        "checkpoints.Checkpoint", on_delete=models.SET_NULL, null=True, related_name="+"
    )
    target = models.CharField(max_length=200)  # who is asked, in words
    documents = models.JSONField(default=list)  # [{"name", "path", "size_bytes"}]
    options = models.JSONField(default=dict)  # pairs, passage_characters, temperature, seed ...
    error = models.TextField(blank=True)
    version = models.ForeignKey(
        "datasets.DatasetVersion", on_delete=models.SET_NULL, null=True, related_name="generations"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)

    objects = GenerationQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.name


class Passage(models.Model):
    """A piece of a document that one question is asked about."""

    generation = models.ForeignKey(Generation, on_delete=models.CASCADE, related_name="passages")
    number = models.PositiveIntegerField()
    document = models.CharField(max_length=255)
    place = models.CharField(max_length=120, blank=True)  # its page or heading
    text = models.TextField()
    is_asked = models.BooleanField(default=False)
    error = models.TextField(blank=True)  # why no pair came of it

    class Meta:
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["generation", "number"], name="one_passage_a_number")
        ]

    def __str__(self) -> str:
        return f"passage {self.number} of {self.document}"


class GeneratedPair(models.Model):
    """A question with its answer, as the model wrote it or as somebody corrected it."""

    class State(models.TextChoices):
        PROPOSED = "proposed"
        ACCEPTED = "accepted"
        REJECTED = "rejected"

    passage = models.ForeignKey(Passage, on_delete=models.CASCADE, related_name="pairs")
    number = models.PositiveIntegerField()
    question = models.TextField()
    answer = models.TextField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.PROPOSED)
    is_edited = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["passage__number", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["passage", "number"], name="one_pair_a_number")
        ]

    def __str__(self) -> str:
        return self.question[:80]
