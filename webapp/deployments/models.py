"""Serving: what is served where, with which proof, and every call for samples."""

from datetime import timedelta
from typing import ClassVar, Self

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.models import Actor, OwnedQuerySet, Project, User
from webapp.checkpoints.models import Checkpoint
from webapp.core import ids
from webapp.core.columns import WrittenJSONField
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session


class DeploymentQuerySet(OwnedQuerySet["Deployment"]):
    """Deployments of a project."""

    def hold(self) -> Self:
        """In a transaction, and before the rows of their changes: who takes those first could wait
        for ever for one that has the deployment and waits for them."""
        list(self.select_for_update(of=("self",)).values_list("pk", flat=True))
        return self


class Deployment(models.Model):
    """A named endpoint and the checkpoint it serves. Without a checkpoint: the base model."""

    class Status(models.TextChoices):
        LOADING = "loading"
        READY = "ready"
        FAILED = "failed"
        STOPPED = "stopped"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_deployment_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="deployments")
    name = models.CharField(max_length=80)
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="deployments")
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.PROTECT, null=True, related_name="deployments"
    )
    num_replicas = models.PositiveSmallIntegerField(default=1)  # 0: asleep until somebody asks
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.LOADING)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=now)
    changed_at = models.DateTimeField(default=now)

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "name"], name="one_deployment_a_name")
        ]

    def __str__(self) -> str:
        return self.name


class Replica(models.Model):
    """A sampling server that this installation runs, or wants to run."""

    class Engine(models.TextChoices):
        BUILT_IN = "built_in"
        VLLM = "vllm"
        EXTERNAL = "external"  # somebody else starts it

    class Status(models.TextChoices):
        STARTING = "starting"
        READY = "ready"
        LOST = "lost"  # it ended or hung, and starts again
        STOPPED = "stopped"  # not wanted now

    name = models.CharField(max_length=80, unique=True)
    base_model = models.ForeignKey(  # null: it serves every base model
        BaseModel, on_delete=models.CASCADE, null=True, related_name="replicas"
    )
    deployment = models.ForeignKey(  # set: it holds this one's weights in place, and nobody else's
        Deployment, on_delete=models.CASCADE, null=True, related_name="replicas"
    )
    engine = models.CharField(max_length=10, choices=Engine.choices)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.STARTING)
    start = models.CharField(max_length=40, blank=True)  # which start of it runs
    url = models.CharField(max_length=200, blank=True)
    pid = models.PositiveIntegerField(null=True)
    version = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True)
    stats = models.JSONField(default=dict)  # what the server says of itself
    stats_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    ready_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True)  # when a call last asked for it

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class HotLoad(models.Model):
    """One load of one checkpoint into one sampling server, with the proof that it is that one."""

    class Status(models.TextChoices):
        LOADING = "loading"
        READY = "ready"
        FAILED = "failed"
        LOST = "lost"  # its server has restarted or evicted it; the next call loads again

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="hot_loads")
    deployment = models.ForeignKey(
        Deployment, on_delete=models.SET_NULL, null=True, related_name="hot_loads"
    )
    replica = models.ForeignKey(
        Replica, on_delete=models.SET_NULL, null=True, related_name="hot_loads"
    )
    server = models.CharField(max_length=120)  # which server, and which start of it
    adapter_name = models.CharField(max_length=120, unique=True)  # never reused
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.LOADING)
    digest = models.CharField(max_length=64, blank=True)  # of the files that were loaded
    export_milliseconds = models.FloatField(null=True)  # the trainer wrote the files
    transfer_milliseconds = models.FloatField(null=True)  # they were opened, checked and restored
    load_milliseconds = models.FloatField(null=True)
    probe_milliseconds = models.FloatField(null=True)
    pause_milliseconds = models.FloatField(null=True)  # of requests in flight on that server
    server_logprobs = models.JSONField(default=list)
    mean_difference = models.FloatField(null=True)  # between trainer and server, nats
    max_difference = models.FloatField(null=True)
    tolerance = models.FloatField(null=True)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return self.adapter_name


class DeploymentChange(models.Model):
    """Other weights that somebody wanted a deployment to serve, and what became of it."""

    class Status(models.TextChoices):
        LOADING = "loading"
        SERVED = "served"
        FAILED = "failed"  # what was served before still is
        SUPERSEDED = "superseded"  # a newer one came first

    class Transition(models.TextChoices):
        """What becomes of requests in flight; empty: the server chooses."""

        NONE = ""
        ASYNC = "async"  # they may go on with the new weights
        SYNC = "sync"  # they end on the old ones first

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="changes")
    checkpoint = models.ForeignKey(  # null: the base model as it is
        Checkpoint, on_delete=models.CASCADE, null=True, related_name="changes"
    )
    previous = models.ForeignKey(Checkpoint, on_delete=models.SET_NULL, null=True, related_name="+")
    transition = models.CharField(max_length=5, choices=Transition.choices, blank=True)
    identity = models.CharField(max_length=200, blank=True)  # what its asker calls the snapshot
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.LOADING)
    hot_load = models.ForeignKey(HotLoad, on_delete=models.SET_NULL, null=True, related_name="+")
    error = models.TextField(blank=True)
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    pause_milliseconds = models.FloatField(null=True)  # of its requests in flight
    created_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            models.Index(fields=["status"], condition=Q(status="loading"), name="pending_changes")
        ]

    def __str__(self) -> str:
        return f"{self.deployment_id} {self.pk}"

    @property
    def took(self) -> timedelta | None:
        return None if self.ended_at is None else self.ended_at - self.created_at


class SamplingSessionQuerySet(OwnedQuerySet["SamplingSession"]):
    """Sampling sessions of a project."""


class SamplingSession(models.Model):
    """What a sampling client was opened on. Its weights never change, unless they are inflight."""

    id = models.CharField(primary_key=True, max_length=80, default=ids.make_sampling_session_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="sampling_sessions")
    seq_id = models.BigIntegerField()  # shared with ephemeral saves
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="+")
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.PROTECT, null=True, related_name="sampling_sessions"
    )
    # Each call that ends takes the next number in the transaction that ends it: who has read up to
    # a number has missed nothing before it, since the row's lock makes the numbers commit in order.
    num_ended = models.BigIntegerField(default=0)
    num_clones = models.BigIntegerField(default=0)  # copies of the client in other processes
    created_at = models.DateTimeField(default=now)

    objects = SamplingSessionQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["session", "seq_id"], name="one_sampling_session_a_seq_id"
            )
        ]

    def __str__(self) -> str:
        return self.id


class SamplingCallQuerySet(OwnedQuerySet["SamplingCall"]):
    """Sampling calls of a project."""

    def with_traffic_for(self, actor: Actor) -> Self:
        """Whose traffic an actor may see: an operator that of all projects."""
        return self if actor.may_administer else self.in_project(actor)


class SamplingCall(models.Model):
    """One request for samples, and later its result, encoded as its caller reads it."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"
        LOST = "lost"  # its program fell silent: one that comes back is told to ask once more

    class Purpose(models.TextChoices):
        """Who asked, which also says how the result is encoded: tinker as protobuf, others JSON."""

        TINKER = "tinker"
        RUN_SAMPLE = "run_sample"
        EVALUATION = "evaluation"
        PLAYGROUND = "playground"
        REST = "rest"
        OPENAI = "openai"
        FIRETITAN = "firetitan"
        ROLLOUT = "rollout"  # a recipe's own samples, and what its teacher says of them
        JUDGE = "judge"
        GENERATION = "generation"  # of a dataset's rows

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    purpose = models.CharField(max_length=12, choices=Purpose.choices)
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="+")
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.CASCADE, null=True, related_name="sampling_calls"
    )
    sampling_session = models.ForeignKey(
        SamplingSession, on_delete=models.CASCADE, null=True, related_name="calls"
    )
    deployment = models.ForeignKey(  # which was asked; what it served then is `checkpoint`
        Deployment, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    is_streamed = models.BooleanField(default=False)  # its tokens are told as they come
    seq_id = models.BigIntegerField(null=True)
    end_number = models.BigIntegerField(null=True)  # of its sampling session's num_ended
    owner = models.CharField(max_length=60, blank=True)  # who takes turns with others: see turns.py
    # {"prompt": [ids]} or {"messages": [...]}, with params, num_samples and prompt_logprobs
    payload = WrittenJSONField()
    digest = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    result = models.BinaryField(null=True)
    content_type = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True)
    error_category = models.CharField(max_length=10, blank=True)
    hot_load = models.ForeignKey(HotLoad, on_delete=models.SET_NULL, null=True, related_name="+")
    # where the answer belongs, by purpose: {"run", "step", "prompt_index"}, {"evaluation", "index"}
    about = models.JSONField(default=dict)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, null=True, related_name="+")
    # What a recipe's call is found again by when its driver begins again
    replay_key = models.CharField(max_length=64, null=True, unique=True)  # noqa: DJ001 - null: none
    # Of the answer: once for each prompt, of which so many were read from a cache, and all samples.
    num_prompt_tokens = models.PositiveIntegerField(default=0)
    num_cached_tokens = models.PositiveIntegerField(default=0)
    num_sampled_tokens = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=80, blank=True)
    claim_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    first_token_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = SamplingCallQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["sampling_session", "seq_id"], name="one_call_a_sampling_seq_id"
            )
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["status", "purpose", "owner", "id"],
                condition=Q(status="queued"),
                name="waiting_calls",
            ),
            models.Index(
                fields=["status", "owner"], condition=Q(status="running"), name="held_calls"
            ),
            models.Index(fields=["sampling_session", "end_number"], name="ended_in_order"),
            models.Index(fields=["finished_at"], name="ended_calls"),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} {self.pk}"

    @property
    def request_id(self) -> str:
        return f"call-{self.pk}"


class SampledHour(models.Model):
    """What calls that are forgotten have used: the sums of one hour, model, program and user."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    hour = models.DateTimeField()
    base_model = models.ForeignKey(BaseModel, on_delete=models.CASCADE, related_name="+")
    session_id = models.CharField(max_length=40, blank=True)  # the session itself may be gone
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    num_prompt_tokens = models.BigIntegerField(default=0)
    num_cached_tokens = models.BigIntegerField(default=0)
    num_sampled_tokens = models.BigIntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["project", "hour"], name="hours_of_a_project")]

    def __str__(self) -> str:
        return f"{self.project_id} {self.hour}"
