"""How much memory a device has for training, and which idle runs leave it: the longest unused.

From the device to host memory, where that is another one, and from there to disk: the journal.
"""

import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from training.engine.core import Engine
from training.engine.lead import LeadEngine
from training.engine.paging import measure_run, page_in, page_out
from training.engine.ranks import Plan
from training.memory import DeviceKind, Fit, fit_model
from training.shapes import ModelShape
from webapp.runs.models import Run
from webapp.settings import read_int
from workers.execute import Held
from workers.room import count_free_bytes

MEGABYTE = 1 << 20
# Of all that a device has: kernels and contexts take the rest, and on a host everything else here.
SHARE = {"cuda": 0.92, "cpu": 0.75}
SHARE_OF_RUNS = 0.3  # of the room, between their passes
SHARE_OF_MODELS = 0.6  # of the room, where there is more than one
SHARE_OF_HOST = 0.5  # for runs that left a device of its own memory
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """In bytes; 0 where nothing is known, and nothing is limited. The same at every start."""

    room: int = 0  # of base models, runs and passes
    runs: int = 0  # weights, gradients and moments of runs
    host: int = 0  # of those that were paged out; 0: they go to disk at once
    num_pieces: int = 1  # of every layer; the room is that of one rank


def read_budget(device: str, plan: Plan | None = None) -> Budget:
    """Of the device's size, not of what is free at this moment: a replay must fit as its first
    time did. Ranks on the CPU share its memory."""
    host = count_host_bytes()
    has_own = device == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory if has_own else host
    room = read_int("HONE_MEMORY_MB", 0) * MEGABYTE or int(total * SHARE[device])
    if plan is not None and not has_own:
        room //= plan.size
    usual_host = int(host * SHARE_OF_HOST) // MEGABYTE if has_own else 0
    return Budget(
        room=room,
        runs=read_int("HONE_RUNS_MB", int(room * SHARE_OF_RUNS) // MEGABYTE) * MEGABYTE,
        host=read_int("HONE_HOST_MB", usual_host) * MEGABYTE,
        num_pieces=plan.num_pieces if plan else 1,
    )


def count_host_bytes() -> int:
    """What this process may use: a container's limit, where it is below the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [Path(file).read_text().strip() for file in LIMITS if Path(file).is_file()]
    return min([total, *(int(text) for text in texts if text.isdigit())])


def plan_engine(
    folder: Path, budget: Budget, device: str, most: int, *, is_full: bool
) -> Fit | None:
    """None: nothing is known of the device's memory."""
    if not budget.room:
        return None
    kind: DeviceKind = "cuda" if device == "cuda" else "cpu"
    shape, num_pieces = ModelShape.read(folder), budget.num_pieces
    return fit_model(shape, kind, budget.room, most, is_full=is_full, num_pieces=num_pieces)


def count_bytes(held: Held) -> int:
    """On the device."""
    return measure_run(held.engine, held.run.pk).total


def count_page(held: Held) -> int:
    """In host memory."""
    return held.page.num_bytes if held.page is not None else 0


def find_excess(
    held: Mapping[str, Held], idle: Set[str], measure: Callable[[Held], int], limit: float
) -> list[str]:
    """Which of the idle, in their order, have to go until the others are within the limit."""
    sizes = {run_id: measure(each) for run_id, each in held.items()}
    excess, going = sum(sizes.values()) - limit, []
    for run_id in held:
        if excess > 0 and run_id in idle and sizes[run_id]:
            going.append(run_id)
            excess -= sizes[run_id]
    return going


def is_crowded(budget: Budget, engines: Mapping[str, Engine], run: Run) -> bool:
    """Whether the run's model would leave less than runs and passes need, beside the others."""
    folder = Path(run.base_model.path)
    if not budget.room or not (engines and (folder / "config.json").is_file()):
        return False
    width = next(iter(engines.values())).adapters.head.weight.element_size()
    new = ModelShape.read(folder).num_parameters * width
    total = new + sum(map(count_weights, engines.values()))
    return total // budget.num_pieces > budget.room * SHARE_OF_MODELS


def can_page(held: Held) -> bool:
    """All weights of a model, and what several ranks hold, go to disk only."""
    if held.page is not None or isinstance(held.engine, LeadEngine):
        return False
    run = held.run.pk
    return run in held.engine.runs and not held.engine.find_weights(run).spec.is_full


def move_to_host(held: Held) -> None:
    held.page = page_out(held.engine, held.run.pk)


def move_back(held: Held) -> None:
    if held.page is not None:
        page_in(held.engine, held.run.pk, held.page)
        held.page = None


def describe_memory(
    budget: Budget,
    device: str,
    most: int,
    engines: Mapping[str, Engine],
    held: Mapping[str, Held],
) -> dict[str, int | str]:
    """What takes how much now, in bytes, and what is offered: for pages and forecasts."""
    runs = [measure_run(each.engine, each.run.pk) for each in list(held.values())]
    pages = [each.page for each in list(held.values()) if each.page is not None]
    return {
        "device": device,
        "room": budget.room,
        "num_pieces": budget.num_pieces,
        "token_budget": most,
        "free": count_free_bytes(device),
        "base_models": sum(count_weights(engine) for engine in list(engines.values())),
        "adapters": sum(run.adapter for run in runs),
        "optimizers": sum(run.optimizer for run in runs),
        "paged": sum(page.num_bytes for page in pages),
        "num_paged": len(pages),
    }


def count_weights(engine: Engine) -> int:
    """Those of a run that trains all of them count as its own."""
    if engine.full is not None:
        return 0
    num_pieces = engine.room.num_pieces if engine.room else 1
    return engine.num_parameters * engine.adapters.head.weight.element_size() // num_pieces
