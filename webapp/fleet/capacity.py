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
    loaders: Mapping[str, str] = field(default_factory=dict)  # names of models by gpu worker
    restoring: Mapping[str, str] = field(default_factory=dict)  # runs by gpu worker
    loading_to_sample: Mapping[str, str] = field(default_factory=dict)
    waits: Mapping[str, str] = field(default_factory=dict)  # for a server, by base model's id

    def explain_load(self, base_model_id: str, worker: str, run_id: str) -> str:
        """What the gpu worker that leases a run brings into memory; `worker` empty: whoever loads
        its base model, as that one takes the run."""
        name = self.loaders.get(worker, "") if worker else self.loading_to_train.get(base_model_id)
        if name:
            loader = worker or next(each for each, model in self.loaders.items() if model == name)
            return f"the worker {loader} is loading {name}"
        restored = self.restoring.get(worker)
        if restored == run_id:
            return "its weights had left memory, and are being restored"
        return f"the worker {worker} is restoring another run's weights" if restored else ""

    def explain_sampling(self, base_model_id: str) -> str:
        waits = self.waits.get(base_model_id) or self.sampling
        return waits or _describe_load(self.loading_to_sample.get(base_model_id))


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
        loaders={row.name: row.holds["loading"] for row in trainers if row.holds.get("loading")},
        restoring={
            row.name: row.holds["restoring"] for row in trainers if row.holds.get("restoring")
        },
        loading_to_sample=_read_loading(samplers),
        waits={pk: why for row in samplers for pk, why in row.holds.get("waits", {}).items()},
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
