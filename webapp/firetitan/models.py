"""What the Fireworks dialect speaks of and Hone has no other row for."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment
from webapp.fleet.models import BaseModel
from webapp.runs.models import Session

LONGEST_ID = 63  # a label of DNS


class TrainerJobQuerySet(OwnedQuerySet["TrainerJob"]):
    """Trainer jobs of a project; deleted ones keep their row, for their checkpoints."""

    def open(self) -> "TrainerJobQuerySet":
        """Those that a program may train with, now or once there is room."""
        return self.filter(state__in=(TrainerJob.State.PENDING, TrainerJob.State.RUNNING))


class TrainerJob(models.Model):
    """A trainer that a program asked for: one base model, and the runs that the program opens on
    it. All jobs share the gpu workers, so a job holds no device of its own.
    """

    class State(models.TextChoices):
        """The wire says `JOB_STATE_` before each."""

        PENDING = "pending"  # no gpu worker is alive and ready
        RUNNING = "running"
        FAILED = "failed"
        PAUSED = "paused"  # nothing was heard of its program for too long
        CANCELLED = "cancelled"
        DELETED = "deleted"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="trainer_jobs")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    job_id = models.CharField(max_length=LONGEST_ID)
    display_name = models.CharField(max_length=200, blank=True)
    base_model = models.ForeignKey(  # null: it asked for one that is not here
        BaseModel, on_delete=models.SET_NULL, null=True, related_name="trainer_jobs"
    )
    asked_model = models.CharField(max_length=200)  # the name that its program gave
    lora_rank = models.PositiveIntegerField(default=0)  # 0: all weights learn
    learning_rate = models.FloatField(default=0)  # told, and not used: each step brings its own
    max_context_length = models.PositiveIntegerField(null=True)
    forward_only = models.BooleanField(default=False)
    hot_load_deployment = models.CharField(max_length=LONGEST_ID, blank=True)  # its id
    training_shape = models.CharField(max_length=300, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    error = models.TextField(blank=True)  # why it failed
    warning = models.TextField(blank=True)  # what of its request is not followed here
    inactivity_seconds = models.PositiveIntegerField()
    # Each client that is opened on it has one, with the runs of the client's models.
    sessions = models.ManyToManyField(Session, related_name="trainer_jobs")
    last_seen_at = models.DateTimeField(default=now)  # its program's last heartbeat
    created_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)

    objects = TrainerJobQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "job_id"], name="one_trainer_job_an_id")
        ]

    def __str__(self) -> str:
        return self.display_name or self.job_id

    @property
    def is_open(self) -> bool:
        return self.state in (self.State.PENDING, self.State.RUNNING)


class DeploymentTerms(models.Model):
    """What a program said of a deployment that it made, to be told again as it was said."""

    deployment = models.OneToOneField(
        Deployment, on_delete=models.CASCADE, related_name="fireworks_terms"
    )
    asked_model = models.CharField(max_length=200)
    description = models.TextField(blank=True)
    deployment_shape = models.CharField(max_length=300, blank=True)
    hot_load_trainer_job = models.CharField(max_length=300, blank=True)  # as it was named
    hot_load_transition_type = models.CharField(max_length=40, blank=True)
    enable_hot_load = models.BooleanField(default=False)
    for_training = models.BooleanField(default=False)
    min_replica_count = models.PositiveIntegerField(default=0)
    max_replica_count = models.PositiveIntegerField(default=1)
    annotations = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"terms of {self.deployment_id}"

    @property
    def trainer_job_id(self) -> str:
        return str(self.hot_load_trainer_job).rpartition("/")[2]


class PromotedModelQuerySet(OwnedQuerySet["PromotedModel"]):
    """Models that were promoted in a project."""


class PromotedModel(models.Model):
    """A name of the account for a checkpoint that stays: nothing is copied."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    model_id = models.CharField(max_length=LONGEST_ID)
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.CASCADE, related_name="promoted_models"
    )
    created_at = models.DateTimeField(default=now)

    objects = PromotedModelQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "model_id"], name="one_promoted_model_an_id")
        ]

    def __str__(self) -> str:
        return self.model_id
