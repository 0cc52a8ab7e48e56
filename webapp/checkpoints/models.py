"""Saved weights and where they came from."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project, User
from webapp.core import ids
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run


class CheckpointQuerySet(OwnedQuerySet["Checkpoint"]):
    """Checkpoints of a project; deleted ones keep their row, for lineage."""

    def alive(self) -> "CheckpointQuerySet":
        return self.filter(deleted_at=None)

    def loadable(self) -> "CheckpointQuerySet":
        """What can be served, sampled from and trained on: exports only leave this server."""
        return self.alive().exclude(kind=Checkpoint.Kind.EXTERNAL)

    def find_named(self, name: str) -> "Checkpoint | None":
        """By its id or its tinker:// path."""
        rows = self.select_related("base_model", "run")
        if not name.startswith("tinker://"):
            return rows.filter(pk=name).first()
        named = rows.filter(name=name.rpartition("/")[2])
        return next((each for each in named if each.tinker_path == name), None)


class Checkpoint(models.Model):
    """Weights on disk: an adapter in PEFT format or, of a full-parameter run, a whole model or what
    differs from one. `training` ones carry the optimizer's state too.

    `external` ones are files to download, which may be encrypted; nothing here loads them.
    """

    class Kind(models.TextChoices):
        TRAINING = "training"
        SAMPLER = "sampler"
        EXTERNAL = "external"

    class Type(models.TextChoices):
        ADAPTER = "adapter"
        BASE = "base"  # a folder that loaders of whole models read
        DELTA = "delta"  # what differs from `previous`, compressed

    PATH_WORDS: ClassVar = {
        Kind.TRAINING: "weights",
        Kind.SAMPLER: "sampler_weights",
        Kind.EXTERNAL: "external_weights",
    }

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_checkpoint_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="checkpoints")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="checkpoints")
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="+")
    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    step = models.PositiveIntegerField()
    seq = models.BigIntegerField()  # of the operation that saved it
    path = models.CharField(max_length=500)  # folder, relative to HONE_HOME
    digest = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    rank = models.PositiveIntegerField()  # 0: of a full-parameter run
    type = models.CharField(max_length=10, choices=Type.choices, default=Type.ADAPTER)
    previous = models.ForeignKey(
        "self", on_delete=models.RESTRICT, null=True, related_name="deltas"
    )  # a delta's
    ratio = models.FloatField(null=True)  # a delta's bytes to those of all weights
    export_milliseconds = models.FloatField(null=True)  # how long the trainer wrote it
    has_optimizer = models.BooleanField(default=False)
    is_encrypted = models.BooleanField(default=False)  # by age, for keys that are not here
    probe = models.JSONField(default=dict)  # tokens, and the trainer's log-probabilities of them
    user_metadata = models.JSONField(default=dict)
    is_public = models.BooleanField(default=False)
    is_ephemeral = models.BooleanField(default=False)  # made for samples or a sampling client
    is_pinned = models.BooleanField(default=False)  # somebody keeps it: no rule deletes it
    is_inflight = models.BooleanField(default=False)  # its clients go on to the next one like it
    copy_key = models.CharField(max_length=200, blank=True)  # of the request that copied it here
    created_at = models.DateTimeField(default=now)
    expires_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)

    objects = CheckpointQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["run", "kind", "name"],
                condition=Q(deleted_at=None),
                name="one_checkpoint_a_name",
            ),
            models.UniqueConstraint(
                fields=["project", "copy_key"],
                condition=~Q(copy_key=""),
                name="one_copy_a_request",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def tinker_path(self) -> str:
        return f"tinker://{self.run.model_id}/{self.PATH_WORDS[self.Kind(self.kind)]}/{self.name}"

    @property
    def is_full(self) -> bool:
        """Of a full-parameter run: a model, and not an adapter of one."""
        return self.rank == 0

    @property
    def is_delta(self) -> bool:
        return self.type == self.Type.DELTA

    @property
    def is_external(self) -> bool:
        return self.kind == self.Kind.EXTERNAL


class ExportQuerySet(OwnedQuerySet["Export"]):
    """Exports of a project's checkpoints."""

    def live(self) -> "ExportQuerySet":
        return self.filter(status__in=(Export.Status.QUEUED, Export.Status.RUNNING))


class Export(models.Model):
    """A checkpoint's weights as a folder for other programs, loaded again before it is given out:
    an adapter in PEFT's format, or a whole model that the adapter is merged into."""

    class Kind(models.TextChoices):
        PEFT = "peft"
        MERGED = "merged"

    class Precision(models.TextChoices):
        SOURCE = "source"  # as the base model's files have it
        BF16 = "bf16"

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        READY = "ready"
        FAILED = "failed"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_export_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="exports")
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    precision = models.CharField(max_length=10, choices=Precision.choices, default=Precision.SOURCE)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    path = models.CharField(max_length=500, blank=True)  # folder, relative to HONE_HOME
    digest = models.CharField(max_length=64, blank=True)  # of the weights there
    size_bytes = models.BigIntegerField(default=0)
    # In nats, over the checkpoint's probe: what the folder says, loaded, against what the trainer
    # said. Weights that are rounded to what the files store differ by that.
    max_difference = models.FloatField(null=True)
    mean_difference = models.FloatField(null=True)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.checkpoint.name} ({self.kind})"

    @property
    def is_ready(self) -> bool:
        return self.status == self.Status.READY


class RetentionRule(models.Model):
    """Which of a project's checkpoints stay. What no part of it keeps is deleted."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="retention_rule")
    keep = models.JSONField(
        default=dict
    )  # {"best": 3, "suite", "last": 1, "every": 100, "days": 7}
    is_active = models.BooleanField(default=False)  # applied by the beat, not only by hand
    changed_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    changed_at = models.DateTimeField(default=now)
    applied_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.project}: {self.keep}"
