"""What each worker does at this moment, by name: a strip at the head of the overview."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from webapp.accounts.models import Actor
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.workers import WorkerState
from webapp.runs.models import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """`runs` are those that it trains and the actor may see; others are only counted."""

    worker: WorkerState
    models: Sequence[str]
    loading: Sequence[str]
    runs: Sequence[Run]
    num_others: int
    num_calls: int

    @property
    def is_sampler(self) -> bool:
        return self.worker.kind == Worker.Kind.SAMPLER

    @property
    def is_starting(self) -> bool:
        holds = self.worker.row.holds
        return self.is_sampler and not holds.get("server") and bool(holds.get("starting", True))


def read_holdings(actor: Actor, workers: Sequence[WorkerState]) -> list[Holding]:
    """Three queries at most, however many workers there are."""
    models = _read_models(_list_ids(workers, "base_models"))
    live = Run.objects.filter(pk__in=_list_ids(workers, "runs"), status=Run.Status.RUNNING)
    runs = {run.pk: run for run in live}
    return [_describe(actor, worker, models, runs) for worker in workers]


def _read_models(ids: Iterable[str]) -> dict[str, str]:
    found = BaseModel.objects.filter(pk__in=ids).prefetch_related("names")
    return {base_model.pk: base_model.short_name for base_model in found}


def _describe(
    actor: Actor, worker: WorkerState, models: dict[str, str], runs: dict[str, Run]
) -> Holding:
    held = [runs[pk] for pk in _list(worker, "runs") if pk in runs]
    seen = [run for run in held if run.project_id == actor.project.pk]
    calls = worker.row.holds.get("calls")
    return Holding(
        worker=worker,
        models=[models[pk] for pk in _list(worker, "base_models") if pk in models],
        loading=[name.rpartition("/")[2] for name in _list(worker, "loading")],
        runs=seen,
        num_others=len(held) - len(seen),
        num_calls=calls if isinstance(calls, int) else 0,
    )


def _list_ids(workers: Iterable[WorkerState], key: str) -> set[str]:
    return {each for worker in workers for each in _list(worker, key)}


def _list(worker: WorkerState, key: str) -> list[str]:
    value = worker.row.holds.get(key) or []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]
