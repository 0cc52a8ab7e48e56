"""What is known of the processes that hold devices: whether they live, and what they hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.utils.timezone import now

from webapp.fleet.models import BaseModel, Worker

COUNTED = {
    "base_models": "base models",
    "runs": "runs",
    "adapters": "checkpoints",
    "calls": "calls",
}
OF_PROJECTS = ("runs", "adapters", "restoring", "server")  # named, of whatever project
MEMORY_PARTS = {
    "room": "For training",
    "base_models": "Base models",
    "adapters": "Trained weights",
    "optimizers": "Optimizer states",
    "paged": "Paged out",
    "free": "Free",
}
SILENCE = timedelta(seconds=60)  # a worker says every few seconds that it lives


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    name: str
    kind: str
    state: str  # alive, lost
    holding: str
    row: Worker
    memory: Sequence[int] = ()  # bytes of each of MEMORY_PARTS; nothing where it does not tell


def find_alive(workers: QuerySet[Worker]) -> QuerySet[Worker]:
    return workers.filter(heartbeat_at__gt=now() - SILENCE)


def list_samplers() -> list[str]:
    """Those that live. What must be done once is done by the first."""
    alive = find_alive(Worker.objects.filter(kind=Worker.Kind.SAMPLER))
    return list(alive.order_by("name").values_list("name", flat=True))


def list_workers() -> list[WorkerState]:
    limit = now() - SILENCE
    return [
        WorkerState(
            name=worker.name,
            kind=worker.kind,
            state="alive" if worker.heartbeat_at > limit else "lost",
            holding=describe_holds(worker.holds),
            row=worker,
            memory=read_memory(worker.holds),
        )
        for worker in Worker.objects.all()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A base model in a gpu worker's memory."""

    worker: str
    base_model: BaseModel

    @property
    def key(self) -> str:
        """No worker's name has a space."""
        return f"{self.worker} {self.base_model.pk}"


def list_places(workers: Iterable[WorkerState]) -> list[Place]:
    """Of the gpu workers that are alive, in two queries at most. A model that a run has for itself
    is none of them.
    """
    held = [
        (worker.name, pk)
        for worker in workers
        if worker.state == "alive" and worker.kind == Worker.Kind.GPU
        for pk in worker.row.holds.get("shared_models") or []
    ]
    found = BaseModel.objects.prefetch_related("names").in_bulk([pk for _, pk in held])
    return [Place(worker=name, base_model=found[pk]) for name, pk in held if pk in found]


def read_memory(holds: Mapping[str, Any]) -> list[int]:
    memory = holds.get("memory")
    return [memory.get(key, 0) for key in MEMORY_PARTS] if memory else []


def hide_names(holds: Mapping[str, Any]) -> dict[str, Any]:
    """For who may not see all projects: how many runs and checkpoints, and whether it has any."""
    named = {key: holds[key] for key in OF_PROJECTS if key in holds}
    counts = {
        key: len(value) if isinstance(value, list) else bool(value) for key, value in named.items()
    }
    return {**holds, **counts}


def describe_holds(holds: dict[str, object]) -> str:
    """`1 base model, 2 runs, 0 calls`: how much of each the worker says it holds."""
    parts = [
        f"{_count(value):,} {_name_key(key, _count(value))}"
        for key, value in holds.items()
        if key in COUNTED
    ]
    return ", ".join(parts) or "nothing yet"


def _count(value: object) -> int:
    return value if isinstance(value, int) else len(value) if isinstance(value, list) else 0


def _name_key(key: str, count: int) -> str:
    return COUNTED[key].removesuffix("s") if count == 1 else COUNTED[key]
