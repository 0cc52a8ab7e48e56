"""Frozen prompt sets, one pass over them by one checkpoint, and single answers."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from webapp.accounts.models import OwnedQuerySet, Project
from webapp.checkpoints.models import Checkpoint
from webapp.core import ids
from webapp.core.columns import WrittenJSONField
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

    class Kind(models.TextChoices):
        OWN = "own"  # prompts, targets and graders of ours
        LM_EVAL = "lm_eval"  # a task of that program, run against our own door

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_suite_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="eval_suites")
    name = models.CharField(max_length=120)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.BUILDING)
    error = models.TextField(blank=True)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.OWN)
    spec = models.JSONField(default=dict)  # what another program's task, or a built-in one, is
    dataset_version = models.ForeignKey(  # null: its items come from somewhere else
        DatasetVersion, on_delete=models.PROTECT, null=True, related_name="eval_suites"
    )
    # which rows: {"held_out_share", "held_out_by", "seed", "limit"}, as a run with them held out
    selection = models.JSONField(default=dict)
    graders = models.JSONField(default=list)  # [{"name", ...settings}]; the first one is the score
    # max_tokens, temperature (0: greedy), seed; num_samples of each prompt and pass_at, where many
    sampling = models.JSONField(default=dict)
    items = WrittenJSONField(default=list)  # [{"messages", "target", "row"}]
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

    @property
    def num_answers(self) -> int:
        """Of one evaluation."""
        return self.num_items * int(self.sampling.get("num_samples", 1))

    @property
    def first_grader(self) -> str:
        """Whose mean is the score. Empty: nothing grades it."""
        return str(self.graders[0]["name"]) if self.graders else ""

    @property
    def source(self) -> str:
        """Where its items come from, if not from a dataset."""
        spec = self.spec
        if spec.get("source") == "reasoning_gym":
            return f"reasoning-gym: {spec['task']}, seed {spec.get('seed', 0)}"
        if spec.get("source") == "built_in":
            return f"built in: {spec['name'].replace('_', ' ')}"
        if self.kind != self.Kind.OWN:
            return f"a task of {self.kind.replace('_', '-')}"
        return "given with the suite"


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
    # As sampled: with the adapter, digest and template; and who judged: {grader: [digests]}.
    served = models.JSONField(default=dict)
    num_done = models.PositiveIntegerField(default=0)
    num_known = models.PositiveIntegerField(default=0)  # taken over from earlier evaluations
    is_fresh = models.BooleanField(default=False)  # everything is asked, whatever is known
    scores = models.JSONField(default=dict)  # {grader: mean, "grader/pass@k": ...}
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
        """By the suite's first grader. None: nothing is graded yet, or ever."""
        score: float | None = self.scores.get(self.suite.first_grader)
        return score


class EvalResult(models.Model):
    """One answer of one evaluation, graded."""

    evaluation = models.ForeignKey(Evaluation, on_delete=models.CASCADE, related_name="results")
    index = models.PositiveIntegerField()  # of the suite's item
    sample = models.PositiveSmallIntegerField(default=0)  # which of its answers
    completion = models.TextField(blank=True)
    num_tokens = models.PositiveIntegerField(default=0)
    stop_reason = models.CharField(max_length=10, blank=True)
    scores = models.JSONField(default=dict)  # {grader: 0..1}; none, and no error: not graded yet
    notes = models.JSONField(default=dict)  # {grader: what it said}
    judges = models.JSONField(default=dict)  # {grader: digest of the weights that judged}
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    digest = models.CharField(max_length=64, blank=True)  # of the weights that answered
    # Of weights, prompt and sampling settings: the same again is not asked again.
    content_key = models.CharField(max_length=64, blank=True, db_index=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering: ClassVar = ["index", "sample"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["evaluation", "index", "sample"], name="one_result_a_sample"
            )
        ]

    def __str__(self) -> str:
        return f"{self.evaluation_id} {self.index}"


class AliasQuerySet(OwnedQuerySet["Alias"]):
    """Aliases of a project."""


class Alias(models.Model):
    """A name such as `prod` for a checkpoint. It moves only where its paired test passes."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_alias_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=80)
    checkpoint = models.ForeignKey(  # null: it names nothing yet
        Checkpoint, on_delete=models.PROTECT, null=True, related_name="aliases"
    )
    # null: it moves freely
    suite = models.ForeignKey(EvalSuite, on_delete=models.PROTECT, null=True, related_name="+")
    # {"grader", "test": better|not_worse, "margin" in points, "level"}
    rule = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=now)
    moved_at = models.DateTimeField(null=True)

    objects = AliasQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "name"], name="one_alias_a_name")
        ]

    def __str__(self) -> str:
        return self.name


class AliasMove(models.Model):
    """An alias asked to name another checkpoint: what the test said, and what became of it."""

    class Outcome(models.TextChoices):
        WAITING = "waiting"  # for the evaluations that decide
        MOVED = "moved"
        REFUSED = "refused"
        ROLLED_BACK = "rolled_back"  # the move was a roll-back

    alias = models.ForeignKey(Alias, on_delete=models.CASCADE, related_name="moves")
    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    previous = models.ForeignKey(Checkpoint, on_delete=models.SET_NULL, null=True, related_name="+")
    evaluation = models.ForeignKey(
        Evaluation, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    previous_evaluation = models.ForeignKey(
        Evaluation, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    outcome = models.CharField(max_length=12, choices=Outcome.choices, default=Outcome.WAITING)
    statistics = models.JSONField(default=dict)  # wins, losses, p_value, difference, interval
    text = models.TextField(blank=True)  # the verdict in a sentence
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["alias"], condition=models.Q(outcome="waiting"), name="one_move_waits"
            )
        ]

    def __str__(self) -> str:
        return f"{self.alias} to {self.checkpoint_id}"


class AliasRule(models.Model):
    """What an alias asked of a move from then on, until the next one began."""

    alias = models.ForeignKey(Alias, on_delete=models.CASCADE, related_name="rules")
    suite = models.ForeignKey(EvalSuite, on_delete=models.PROTECT, null=True, related_name="+")
    rule = models.JSONField(default=dict)  # as the alias's own
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.alias} from {self.created_at}"
