"""Which checkpoints something needs now, whatever a rule says. Apps above are found by name."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from django.apps import apps
from django.db.models import F, Q, QuerySet

from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import LIVE
from webapp.runs.models import Run

OVER = (Run.Status.DONE, Run.Status.FAILED, Run.Status.CANCELLED)
SERVING = ("loading", "ready", "failed")
PREFIX, PATH_PREFIX = "ckpt-", "tinker://"

# Each way of needing one that the database can name by itself, with the words for it.
NEEDED: tuple[tuple[str, Q], ...] = (
    ("pinned", Q(is_pinned=True)),
    ("public", Q(is_public=True)),
    ("served", Q(deployments__status__in=SERVING)),
    ("about to be served", Q(changes__status="loading")),
    ("being sampled from", Q(sampling_calls__status__in=LIVE)),
    (
        "open in a sampling client",
        Q(sampling_sessions__isnull=False, sampling_sessions__session__finished_at=None),
    ),
    ("named by an alias", Q(aliases__isnull=False)),
    ("being evaluated", Q(evaluations__status__in=LIVE)),
    ("being exported", Q(exports__status__in=LIVE)),
    ("promoted", Q(promoted_models__isnull=False)),
    ("what a run that is not over began with", Q(branches__status__in=(*LIVE, "paused"))),
)


def list_needs(project_id: str) -> dict[str, list[str]]:
    """By checkpoint, the reasons why it may not go."""
    mine = Checkpoint.objects.alive().filter(project=project_id)
    needs: dict[str, list[str]] = defaultdict(list)
    for reason, condition in NEEDED:
        _note(needs, reason, mine.filter(condition).values_list("pk", flat=True))
    elsewhere = Checkpoint.objects.alive().exclude(project=project_id)
    theirs = elsewhere.filter(run__parent__project=project_id)
    _note(needs, "another project began with it", theirs.values_list("run__parent", flat=True))
    _note(needs, "what a rollback would serve", _list_ways_back(project_id))
    _note(needs, "what an alias is tested or rolled back to", _list_moves(project_id))
    _note(needs, "named by a suite or a run that is not over", _list_named(project_id))
    _note(needs, "asked for pairs from documents", _list_asked(project_id))
    return needs


def _note(needs: dict[str, list[str]], reason: str, ids: Iterable[str | None]) -> None:
    for each in set(ids):
        if each:
            needs[each].append(reason)


def _find_model(app: str, name: str) -> QuerySet[Any]:
    rows: QuerySet[Any] = apps.get_model(app, name)._default_manager.all()
    return rows


def _list_ways_back(project_id: str) -> list[str | None]:
    """Of each deployment that serves: what it served before."""
    changes = _find_model("deployments", "DeploymentChange").filter(
        deployment__project=project_id, deployment__status__in=SERVING, status="served"
    )
    found: dict[str, str | None] = {}
    served = changes.order_by("-pk").values_list(
        "deployment", "checkpoint", "deployment__checkpoint"
    )
    for deployment, checkpoint, current in served.iterator():
        if checkpoint != current:
            found.setdefault(deployment, checkpoint)
    return list(found.values())


def _list_moves(project_id: str) -> Iterator[str | None]:
    """Of each alias: what it named before, and what moves that wait for their test compare."""
    moves = _find_model("evals", "AliasMove").filter(alias__project=project_id)
    moved = moves.filter(outcome="moved", checkpoint=F("alias__checkpoint")).order_by("-pk")
    before: dict[str, str | None] = {}
    for alias, previous in moved.values_list("alias", "previous").iterator():
        before.setdefault(alias, previous)
    yield from before.values()
    for pair in moves.filter(outcome="waiting").values_list("checkpoint", "previous"):
        yield from pair


def _list_asked(project_id: str) -> QuerySet[Any]:
    """Between two questions none of its calls is on its way."""
    generations = _find_model("datasets", "Generation").filter(project=project_id)
    asking = generations.filter(status__in=("reading", "asking"))
    return asking.values_list("checkpoint", flat=True)


def _list_named(project_id: str) -> Iterator[str]:
    """A judge, a teacher, a reward model: wherever settings say a checkpoint's id or path."""
    live = Run.objects.filter(project=project_id).exclude(status__in=OVER)
    suites = _find_model("evals", "EvalSuite").filter(project=project_id)
    paths: set[str] = set()
    for settings in (
        *live.values_list("config", flat=True).iterator(),
        *suites.values_list("graders", "spec").iterator(),
    ):
        yield from find_checkpoint_ids(settings)
        paths.update(_find_texts(settings, PATH_PREFIX))
    yield from _list_by_path(project_id, paths)


def _list_by_path(project_id: str, paths: Collection[str]) -> Iterator[str]:
    names = {path.rpartition("/")[2] for path in paths}
    rows = Checkpoint.objects.alive().filter(project=project_id, name__in=names)
    for checkpoint in rows.select_related("run").defer("probe") if names else ():
        if checkpoint.tinker_path in paths:
            yield checkpoint.pk


def find_checkpoint_ids(value: Any) -> Iterator[str]:
    return _find_texts(value, PREFIX)


def _find_texts(value: Any, beginning: str) -> Iterator[str]:
    """By hand: settings may be nested as deep as JSON goes."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
        elif isinstance(each, str) and each.startswith(beginning):
            yield each
