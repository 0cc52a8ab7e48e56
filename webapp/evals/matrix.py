"""Checkpoints by suites: each cell the newest score, beside what the baseline scored there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Q

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.naming import name_checkpoint
from webapp.evals.services import LIVE
from webapp.fleet.models import BaseModel

MOST_ROWS = 60
MOST_SUITES = 20
READ = 5000  # evaluations: the newest
SHADES = ((0.10, 3), (0.03, 2), (0.0, 1))  # a difference above this has this shade


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A row: a base model as it is, or a checkpoint."""

    id: str
    name: str
    checkpoint: Checkpoint | None
    aliases: Sequence[str] = ()

    @property
    def can_be_evaluated(self) -> bool:
        checkpoint = self.checkpoint
        return checkpoint is None or (checkpoint.deleted_at is None and not checkpoint.is_external)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """`done` is the newest that ended well; `live` one on its way."""

    suite: EvalSuite
    done: Evaluation | None
    live: Evaluation | None
    score: float | None
    baseline: Evaluation | None
    change: float | None  # against the baseline's score, in points

    @property
    def shade(self) -> str:
        """`better-3` to `worse-3`; empty: as the baseline, or nothing to compare with."""
        if not self.change:
            return ""
        share = abs(self.change) / 100
        strength = next(shade for limit, shade in SHADES if share > limit)
        return f"{'better' if self.change > 0 else 'worse'}-{strength}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    suites: Sequence[EvalSuite]
    rows: Sequence[tuple[Subject, Sequence[MatrixCell]]]
    baseline: str  # the id of its row; empty: there is none
    num_left_out: int


Found = Mapping[tuple[str, str], Evaluation]


def read_matrix(actor: Actor, *, run: str = "", baseline: str = "") -> Matrix:
    evaluations = list(_read_evaluations(actor, run))
    done = _keep_newest(each for each in evaluations if each.status == Evaluation.Status.DONE)
    live = _keep_newest(each for each in evaluations if each.status in LIVE)
    subjects = _list_subjects(actor, evaluations, run)
    shown = subjects[:MOST_ROWS]
    ids = [subject.id for subject in shown]
    chosen = baseline if baseline in ids else (ids[0] if ids else "")
    suites = _list_suites(actor, evaluations)
    return Matrix(
        suites=suites,
        rows=[
            (each, [_make_cell(each, suite, chosen, done, live) for suite in suites])
            for each in shown
        ],
        baseline=chosen,
        num_left_out=len(subjects) - len(shown),
    )


def _read_evaluations(actor: Actor, run: str) -> Iterable[Evaluation]:
    rows = Evaluation.objects.in_project(actor).select_related(
        "suite", "checkpoint__run", "base_model"
    )
    if run:
        rows = rows.filter(Q(checkpoint__run=run) | Q(checkpoint=None))
    return rows.defer("suite__items", "checkpoint__probe").prefetch_related("base_model__names")[
        :READ
    ]


def _subject_id(evaluation: Evaluation) -> str:
    return evaluation.checkpoint_id or evaluation.base_model_id


def _keep_newest(evaluations: Iterable[Evaluation]) -> Found:
    """They come newest first."""
    found: dict[tuple[str, str], Evaluation] = {}
    for each in evaluations:
        found.setdefault((_subject_id(each), each.suite_id), each)
    return found


def _list_subjects(actor: Actor, evaluations: Sequence[Evaluation], run: str) -> list[Subject]:
    """Base models first; of one run the steps in their order, the newest run first."""
    bases = {each.base_model_id: each.base_model for each in evaluations if not each.checkpoint_id}
    if run:
        trained = Checkpoint.objects.filter(run=run).values_list("base_model", flat=True)
        bases = {pk: model for pk, model in bases.items() if pk in set(trained)}
    rows = Checkpoint.objects.in_project(actor).select_related("run").defer("probe")
    seen = {each.checkpoint_id for each in evaluations if each.checkpoint_id}
    wanted = Q(pk__in=seen) | Q(aliases__isnull=False, deleted_at=None)
    if run:
        mine = Q(deleted_at=None, is_ephemeral=False) & ~Q(kind=Checkpoint.Kind.EXTERNAL)
        wanted = Q(run=run) & (mine | Q(pk__in=seen))
    checkpoints = rows.filter(wanted).distinct().prefetch_related("aliases")
    ordered = sorted(checkpoints.order_by("step"), key=_newest_run_first)
    return [*map(_of_base, bases.values()), *map(_of_checkpoint, ordered)]


def _newest_run_first(checkpoint: Checkpoint) -> tuple[float, str]:
    return (-checkpoint.run.created_at.timestamp(), checkpoint.run_id)


def _of_base(model: BaseModel) -> Subject:
    return Subject(id=model.pk, name=model.short_name, checkpoint=None)


def _of_checkpoint(checkpoint: Checkpoint) -> Subject:
    return Subject(
        id=checkpoint.pk,
        name=name_checkpoint(checkpoint),
        checkpoint=checkpoint,
        aliases=[alias.name for alias in checkpoint.aliases.all()],
    )


def _list_suites(actor: Actor, evaluations: Sequence[Evaluation]) -> list[EvalSuite]:
    """Those that were evaluated lately first."""
    ready = EvalSuite.objects.in_project(actor).filter(status=EvalSuite.Status.READY)
    used = list(dict.fromkeys(each.suite_id for each in evaluations))
    ranks = {suite_id: rank for rank, suite_id in enumerate(used)}
    suites = sorted(ready.defer("items"), key=lambda each: ranks.get(each.pk, len(ranks)))
    return suites[:MOST_SUITES]


def _make_cell(
    subject: Subject, suite: EvalSuite, baseline: str, done: Found, live: Found
) -> MatrixCell:
    mine, theirs = done.get((subject.id, suite.pk)), done.get((baseline, suite.pk))
    change = None
    if mine and theirs and subject.id != baseline:
        change = _subtract(mine.first_score, theirs.first_score)
    return MatrixCell(
        suite=suite,
        done=mine,
        live=live.get((subject.id, suite.pk)),
        score=mine.first_score if mine else None,
        baseline=theirs,
        change=change,
    )


def _subtract(score: float | None, baseline: float | None) -> float | None:
    """In points. None: one of the two is not there."""
    return None if score is None or baseline is None else 100 * (score - baseline)
