"""Runs and what belongs to them: the operation log, metrics, samples, log lines, SDK sessions."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.core import ids
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs import records  # noqa: F401 - Django looks for an app's models here


class Origin(models.TextChoices):
    BROWSER = "browser"
    REST = "rest"
    TINKER = "tinker"
    FIRETITAN = "firetitan"


class SessionQuerySet(OwnedQuerySet["Session"]):
    """Sessions of a project."""


class Session(models.Model):
    """What an SDK client holds open while its program runs."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_session_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="sessions")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    idempotency_key = models.CharField(max_length=200, blank=True)
    tags = models.JSONField(default=list)
    user_metadata = models.JSONField(default=dict)
    display_name = models.CharField(max_length=200, blank=True)
    sdk_version = models.CharField(max_length=40, blank=True)
    created_at = models.DateTimeField(default=now)
    heartbeat_at = models.DateTimeField(default=now)
    finished_at = models.DateTimeField(null=True)
    finish_reason = models.CharField(max_length=20, blank=True)
    finish_detail = models.TextField(blank=True)

    objects = SessionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["project", "idempotency_key"],
                condition=~Q(idempotency_key=""),
                name="one_session_a_creation",
            )
        ]

    def __str__(self) -> str:
        return self.display_name or self.id


class CustomLoss(models.Model):
    """A loss that a program traced and sent: its session's runs train on it by its id."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_custom_loss_id)
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="custom_losses")
    custom_loss_seq_id = models.BigIntegerField()
    name = models.CharField(max_length=200)
    inputs = models.JSONField()  # [{"name", "rank"}], logprobs first
    graph = models.TextField()  # JSON as it was checked: a database's own JSON loses -0.0
    digest = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["session", "custom_loss_seq_id"], name="one_loss_a_custom_loss_seq_id"
            )
        ]

    def __str__(self) -> str:
        return self.name


class RunGroupQuerySet(OwnedQuerySet["RunGroup"]):
    """Groups of a project's runs."""


class RunGroup(models.Model):
    """Runs that were launched together: a sweep over settings, or the stages of a pipeline."""

    class Kind(models.TextChoices):
        SWEEP = "sweep"
        RLHF = "rlhf"

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_run_group_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="run_groups")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    spec = models.JSONField(default=dict)  # as it was asked for: the grid or list, the stages
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)

    objects = RunGroupQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.name


class RunQuerySet(OwnedQuerySet["Run"]):
    """Runs of a project."""


class Run(models.Model):
    """One set of trainable weights and its log of operations."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        PAUSED = "paused"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class Wish(models.TextChoices):
        """What a person pressed and the recipe has not done yet."""

        NONE = ""
        PAUSE = "pause"
        STOP = "stop"

    id = models.CharField(primary_key=True, max_length=60, default=ids.make_run_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    name = models.CharField(max_length=120)
    origin = models.CharField(max_length=10, choices=Origin.choices)
    recipe = models.CharField(max_length=40, blank=True)  # sft; empty: a client's own loop
    group = models.ForeignKey(RunGroup, on_delete=models.SET_NULL, null=True, related_name="runs")
    # Queued until that one is done: its last checkpoint is then this one's parent, or its judge.
    after = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="next")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    wish = models.CharField(max_length=10, choices=Wish.choices, default=Wish.NONE, blank=True)
    error = models.TextField(blank=True)
    error_category = models.CharField(max_length=10, blank=True)  # user, server

    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="runs")
    asked_model = models.CharField(max_length=200, blank=True)  # the name its program gave
    rank = models.PositiveIntegerField()  # 0: full-parameter, all weights of the model
    is_reference = models.BooleanField(default=False)  # the base model's weights, never trained
    lora = models.JSONField(default=dict)  # alpha, seed, and which parts it trains
    optimizer = models.CharField(max_length=10, default="adamw")  # from its creation to its end
    config = models.JSONField(default=dict)  # the recipe's; a client's user_metadata otherwise
    notes = models.JSONField(
        default=dict
    )  # losses and optimizers of it that are Hone's own reading
    # learning_rate, kl_coefficient, save_now, evaluate_now, stop_after_save
    steering = models.JSONField(default=dict)
    dataset_version = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, related_name="runs"
    )
    parent = models.ForeignKey(
        "checkpoints.Checkpoint", on_delete=models.SET_NULL, null=True, related_name="branches"
    )
    with_optimizer = models.BooleanField(default=False)  # taken from the parent too

    session = models.ForeignKey(Session, on_delete=models.CASCADE, null=True, related_name="runs")
    model_seq_id = models.BigIntegerField(null=True)

    step = models.PositiveIntegerField(default=0)  # optimizer steps done
    total_steps = models.PositiveIntegerField(null=True)
    num_tokens = models.BigIntegerField(default=0)
    tokens_per_second = models.FloatField(null=True)
    last_loss = models.FloatField(null=True)
    predicted_bytes = models.BigIntegerField(null=True)  # of memory, at the peak of a pass
    peak_bytes = models.BigIntegerField(null=True)  # as measured, of a pass that it had for itself

    done_seq = models.BigIntegerField(default=-1)  # every operation up to here has ended
    autosave_seq = models.BigIntegerField(default=-1)  # the log up to here is in the autosave
    autosave_path = models.CharField(max_length=500, blank=True)
    worker = models.CharField(max_length=80, blank=True)  # who leases it
    lease_until = models.DateTimeField(null=True)
    driver = models.CharField(max_length=80, blank=True)  # the task that runs its recipe
    driver_until = models.DateTimeField(null=True)

    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    forgotten_at = models.DateTimeField(null=True)  # its log keeps no bytes any more
    last_request_at = models.DateTimeField(default=now)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["project", "-created_at"])]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["session", "model_seq_id"], name="one_run_a_model_seq_id"
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def told_recipe(self) -> str:
        """Its recipe, or what a client's program calls its loop, if it calls it anything."""
        return self.recipe or str(self.config.get("recipe_name", "")).removeprefix("recipe_")

    @property
    def model_name(self) -> str:
        """The base model's, as the run's program calls it: one model may have several names."""
        return self.asked_model or self.base_model.name

    @property
    def model_id(self) -> str:
        """What the Tinker dialect calls it: the SDK computes this name by itself."""
        if self.session_id is None:
            return self.id
        return f"{self.session_id}:train:{self.model_seq_id}"

    @property
    def is_full(self) -> bool:
        """A full-parameter run: the model itself learns."""
        return self.rank == 0

    @property
    def is_over(self) -> bool:
        return self.status in (self.Status.DONE, self.Status.FAILED, self.Status.CANCELLED)


class OperationQuerySet(models.QuerySet["Operation"]):
    """Operations."""


class Operation(models.Model):
    """One entry of a run's log. Its first submission wins; `(run, seq)` is unique."""

    class Kind(models.TextChoices):
        CREATE_MODEL = "create_model"
        FORWARD_BACKWARD = "forward_backward"
        OPTIM_STEP = "optim_step"
        SAVE_WEIGHTS = "save_weights"
        SAVE_WEIGHTS_FOR_SAMPLER = "save_weights_for_sampler"
        SAVE_WEIGHTS_EXTERNAL = "save_weights_external"
        LOAD_WEIGHTS = "load_weights"
        UNLOAD_MODEL = "unload_model"

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        REFUSED = (
            "refused"  # answered with a 4xx: it will never come again, and nobody waits for it
        )

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="operations")
    seq = models.BigIntegerField()
    kind = models.CharField(max_length=30, choices=Kind.choices)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    payload = models.BinaryField(null=True)  # erased once an autosave covers it
    digest = models.CharField(max_length=64)  # of the payload; outlives it
    result = models.BinaryField(null=True)
    content_type = models.CharField(max_length=40, blank=True)  # of the result
    error = models.TextField(blank=True)
    error_category = models.CharField(max_length=10, blank=True)
    num_tokens = models.PositiveIntegerField(default=0)
    forward_only = models.BooleanField(default=False)  # a forward_backward without gradients
    worker = models.CharField(max_length=80, blank=True)
    tries = models.PositiveSmallIntegerField(default=0)  # since a worker died that had it
    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = OperationQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["run", "seq"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "seq"], name="one_operation_a_seq")
        ]
        indexes: ClassVar = [
            models.Index(fields=["status"], condition=Q(status="queued"), name="waiting_operations")
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.seq} {self.kind}"

    @property
    def request_id(self) -> str:
        return f"op-{self.pk}"


class Metric(models.Model):
    """One number of one step."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    key = models.CharField(max_length=100)
    value = models.FloatField()
    at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["run", "key", "step"])]
        constraints: ClassVar = [
            # A replayed step writes the same point again, never a second one.
            models.UniqueConstraint(fields=["run", "key", "step"], name="one_value_a_step")
        ]

    def __str__(self) -> str:
        return f"{self.key} = {self.value} at {self.step}"


class Sample(models.Model):
    """A prompt with its completion, from the weights of one step."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="samples")
    step = models.PositiveIntegerField()
    prompt_index = models.PositiveIntegerField()
    prompt = models.JSONField()  # messages
    completion = models.TextField(blank=True)
    tokens = models.JSONField(default=list)  # [{"text", "id", "logprob"}]
    stop_reason = models.CharField(max_length=10, blank=True)
    error = models.TextField(blank=True)
    checkpoint = models.ForeignKey(
        "checkpoints.Checkpoint", on_delete=models.SET_NULL, null=True, related_name="samples"
    )
    digest = models.CharField(max_length=64, blank=True)  # of the weights that answered
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["step", "prompt_index"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["run", "step", "prompt_index"], name="one_sample_a_prompt"
            )
        ]

    def __str__(self) -> str:
        return f"{self.run_id} step {self.step} prompt {self.prompt_index}"


class LogLine(models.Model):
    """What happened to a run, in a sentence."""

    class Level(models.TextChoices):
        INFO = "info"
        WARNING = "warning"
        ERROR = "error"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="log_lines")
    level = models.CharField(max_length=10, choices=Level.choices, default=Level.INFO)
    step = models.PositiveIntegerField(default=0)
    text = models.TextField()
    at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return self.text
