"""Who could work now, and why nobody does: in words, for programs and people who wait."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from webapp.fleet.models import BaseModelName, Worker
from webapp.fleet.workers import WorkerState, list_workers

NO_TRAINER = "waiting for a gpu worker: none is alive"
NO_SAMPLER = "waiting for a sampler: none is alive"
SERVER_STARTS = "the sampling server is starting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Reasons to wait. Empty where work is being done, and its turn will come."""

    training: str = ""
    sampling: str = ""
    loading_to_train: Mapping[str, str] = field(default_factory=dict)  # names by base model's id
    loading_to_sample: Mapping[str, str] = field(default_factory=dict)

    def explain_training(self, base_model_id: str) -> str:
        return self.training or _describe_load(self.loading_to_train.get(base_model_id))

    def explain_sampling(self, base_model_id: str) -> str:
        return self.sampling or _describe_load(self.loading_to_sample.get(base_model_id))


def _describe_load(name: str | None) -> str:
    return f"loading {name}" if name else ""


def read_capacity(workers: Sequence[WorkerState] | None = None) -> Capacity:
    """One query, and one more while a base model is being loaded."""
    known = list_workers() if workers is None else workers
    alive = [each.row for each in known if each.state == "alive"]
    trainers = [row for row in alive if row.kind == Worker.Kind.GPU]
    samplers = [row for row in alive if row.kind == Worker.Kind.SAMPLER]
    is_serving = any(row.holds.get("server") for row in samplers)
    return Capacity(
        training="" if trainers else NO_TRAINER,
        sampling="" if is_serving else SERVER_STARTS if samplers else NO_SAMPLER,
        loading_to_train=_read_loading(trainers),
        loading_to_sample=_read_loading(samplers),
    )


def _read_loading(rows: Iterable[Worker]) -> dict[str, str]:
    names: set[str] = set()
    for row in rows:
        loading = row.holds.get("loading") or []
        names.update([loading] if isinstance(loading, str) else loading)
    if not names:
        return {}
    found = BaseModelName.objects.filter(name__in=names)
    return dict(found.values_list("base_model_id", "name"))
