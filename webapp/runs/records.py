"""What a run leaves beside its log: annotations, findings, rollouts and the losses of rows."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.runs.diagnostics import BY_KEY, Diagnostic


class Annotation(models.Model):
    """What happened at a step, drawn on the run's curves: somebody steered, something was found."""

    class Kind(models.TextChoices):
        STEERING = "steering"
        DIAGNOSTIC = "diagnostic"
        EVALUATION = "evaluation"

    run = models.ForeignKey("runs.Run", on_delete=models.CASCADE, related_name="annotations")
    step = models.PositiveIntegerField()
    kind = models.CharField(max_length=10, choices=Kind.choices)
    text = models.TextField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["step", "id"]
        constraints: ClassVar = [
            # A replay that comes by again says nothing twice.
            models.UniqueConstraint(
                fields=["run", "step", "kind", "text"], name="one_annotation_a_text"
            )
        ]

    def __str__(self) -> str:
        return self.text


class Finding(models.Model):
    """A failure that would be silent elsewhere, seen in a run's log: one row a diagnostic."""

    class Level(models.TextChoices):
        WARNING = "warning"
        ERROR = "error"

    run = models.ForeignKey("runs.Run", on_delete=models.CASCADE, related_name="findings")
    diagnostic = models.CharField(max_length=40)  # its key, such as stale_sampler
    level = models.CharField(max_length=10, choices=Level.choices, default=Level.WARNING)
    step = models.PositiveIntegerField(default=0)  # where it was first seen
    last_step = models.PositiveIntegerField(default=0)
    text = models.TextField()  # what is wrong, and what to do
    facts = models.JSONField(default=dict)  # the numbers, and what shows it: rows, samples, steps
    created_at = models.DateTimeField(default=now)
    seen_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)  # it is not so any more
    dismissed_at = models.DateTimeField(null=True)  # somebody knows: no badge while it lasts
    dismissed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "diagnostic"], name="one_finding_a_diagnostic")
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.diagnostic}"

    @property
    def known(self) -> Diagnostic:
        return BY_KEY[self.diagnostic]


class Look(models.Model):
    """How far the diagnostics have looked at a run, and how each of them stands."""

    run = models.OneToOneField("runs.Run", on_delete=models.CASCADE, related_name="look")
    looked_at = models.DateTimeField(null=True)
    states = models.JSONField(default=dict)  # {diagnostic: {"state", "text"}}
    memory = models.JSONField(default=dict)  # {diagnostic: what it need not read again}

    def __str__(self) -> str:
        return f"{self.run_id} at {self.looked_at}"


class ProjectThreshold(models.Model):
    """A number of its own, from which on a project's diagnostics speak."""

    project = models.ForeignKey(
        "accounts.Project", on_delete=models.CASCADE, related_name="thresholds"
    )
    key = models.CharField(max_length=40)  # a field of `webapp.runs.thresholds.Limits`
    value = models.FloatField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "key"], name="one_value_a_threshold")
        ]

    def __str__(self) -> str:
        return f"{self.key} {self.value}"


class Rollout(models.Model):
    """One sampled answer of a reinforcement learning step, with what it was worth."""

    run = models.ForeignKey("runs.Run", on_delete=models.CASCADE, related_name="rollouts")
    step = models.PositiveIntegerField()
    group = models.PositiveIntegerField()  # answers to one prompt
    index = models.PositiveIntegerField()  # within the group
    row = models.PositiveIntegerField(null=True)  # of the dataset version
    prompt = models.JSONField()  # messages
    completion = models.TextField(blank=True)
    tokens = models.JSONField(default=list)  # [{"text", "id", "logprob"}]
    stop_reason = models.CharField(max_length=10, blank=True)
    reward = models.FloatField()
    rewards = models.JSONField(default=dict)  # {grader: 0..1}
    advantage = models.FloatField(default=0.0)
    is_dropped = models.BooleanField(default=False)  # nothing was learned from its group
    checkpoint = models.ForeignKey(
        "checkpoints.Checkpoint", on_delete=models.SET_NULL, null=True, related_name="+"
    )
    digest = models.CharField(max_length=64, blank=True)  # of the weights that answered
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["step", "group", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["run", "step", "group", "index"], name="one_rollout_an_index"
            )
        ]

    def __str__(self) -> str:
        return f"{self.run_id} step {self.step} group {self.group} answer {self.index}"


class RowLoss(models.Model):
    """What a row of the dataset cost at a step that learned from it."""

    run = models.ForeignKey("runs.Run", on_delete=models.CASCADE, related_name="row_losses")
    step = models.PositiveIntegerField()
    row = models.PositiveIntegerField()  # its number in the dataset version
    loss = models.FloatField()  # the mean over its weighted tokens, in nats

    class Meta:
        ordering: ClassVar = ["row", "step"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "row", "step"], name="one_loss_a_row_and_step")
        ]

    def __str__(self) -> str:
        return f"{self.run_id} row {self.row} at {self.step}: {self.loss}"
