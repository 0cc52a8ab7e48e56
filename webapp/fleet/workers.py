"""What is known of the processes that hold devices: whether they live, and what they hold."""

from dataclasses import dataclass
from datetime import timedelta

from django.utils.timezone import now

from webapp.fleet.models import Worker

SILENCE = timedelta(seconds=60)  # a worker says every few seconds that it lives


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    name: str
    kind: str
    state: str  # alive, lost
    holding: str
    row: Worker


def list_workers() -> list[WorkerState]:
    limit = now() - SILENCE
    return [
        WorkerState(
            name=worker.name,
            kind=worker.kind,
            state="alive" if worker.heartbeat_at > limit else "lost",
            holding=describe_holds(worker.holds),
            row=worker,
        )
        for worker in Worker.objects.all()
    ]


def describe_holds(holds: dict[str, object]) -> str:
    """`base model: X; adapters: a, b`: whatever the worker says it holds, in words."""
    parts = [
        f"{key.replace('_', ' ')}: {_describe_value(value)}"
        for key, value in holds.items()
        if value not in (None, "", [], {})
    ]
    return "; ".join(parts) or "nothing yet"


def _describe_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_describe_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_describe_value(inner) for inner in value)
    return str(value)
