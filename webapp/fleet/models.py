"""Base models that may be trained and sampled, and the processes that hold them."""

from typing import ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from webapp.core import ids


class BaseModel(models.Model):
    """A model directory on disk. Shared by all projects; clients ask for it by any of its names."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_base_model_id)
    path = models.CharField(max_length=1000, unique=True)
    architecture = models.CharField(max_length=80, blank=True)
    num_parameters = models.BigIntegerField(default=0)
    context_tokens = models.IntegerField(default=0)
    vocab_size = models.IntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    has_chat_template = models.BooleanField(default=False)
    added_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["added_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The first name it was given; the others are aliases."""
        first = next(iter(self.names.all()), None)
        return first.name if first else self.id

    @property
    def short_name(self) -> str:
        """Without its publisher: for titles and columns."""
        return self.name.rpartition("/")[2]


class BaseModelName(models.Model):
    """A name clients may ask for, such as `Qwen/Qwen3-8B`."""

    base_model = models.ForeignKey(BaseModel, on_delete=models.CASCADE, related_name="names")
    name = models.CharField(max_length=200, unique=True)

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return self.name


class Worker(models.Model):
    """A process that registered itself and keeps saying that it lives."""

    class Kind(models.TextChoices):
        GPU = "gpu"
        SAMPLER = "sampler"

    name = models.CharField(primary_key=True, max_length=80)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    device = models.CharField(max_length=120, blank=True)  # "2 CPU cores", "NVIDIA H200"
    memory_bytes = models.BigIntegerField(default=0)
    flops = models.FloatField(default=0)  # measured matmul speed, a second; for estimates
    holds = models.JSONField(default=dict)  # base models, adapters, calls in flight
    pid = models.IntegerField(default=0)
    started_at = models.DateTimeField(default=now)
    heartbeat_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["kind", "name"]

    def __str__(self) -> str:
        return self.name


class IsolationTestQuerySet(models.QuerySet["IsolationTest"]):
    """Isolation tests. They hold nothing of any project, and everybody may read them."""

    def for_pages(self) -> Self:
        return self.prefetch_related("base_model__names")

    def unfinished(self) -> Self:
        return self.filter(status__in=("queued", "running"))


class IsolationTest(models.Model):
    """Eight made-up tenants on a worker, each alone and all together: what a person may start."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"  # it could not be made; `is_passed` says what one found that was

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_isolation_test_id)
    worker = models.CharField(max_length=80)
    base_model = models.ForeignKey(
        BaseModel, on_delete=models.CASCADE, related_name="isolation_tests"
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    error = models.TextField(blank=True)
    dtype = models.CharField(max_length=20, blank=True)
    num_tokens = models.PositiveIntegerField(default=0)  # of the shared pass
    differences = models.JSONField(default=list)  # [{quantity, largest, beside, tolerance}]
    is_passed = models.BooleanField(null=True)
    seconds = models.FloatField(null=True)  # of the worker
    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = IsolationTestQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["worker", "base_model"],
                condition=Q(status__in=["queued", "running"]),
                name="one_isolation_test_at_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"{self.worker} {self.base_model_id} {self.status}"

    @property
    def is_over(self) -> bool:
        return self.status in (self.Status.DONE, self.Status.FAILED)
