"""The peak memory of a pass that one run has for itself: what the prediction is compared with."""

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from django.db import DatabaseError

from training.engine.cycle import Pack
from training.engine.lead import LeadEngine
from training.engine.paging import measure_run
from webapp.runs.models import Run
from workers.execute import Held
from workers.memory import count_weights

GROWTH = 1.1  # of a run's largest pass: less is not worth another measurement
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")

logger = logging.getLogger(__name__)


def watch(held: Held, pack: Pack, act: Callable[[], None]) -> Callable[[], None]:
    """`act`, measured where it is the run's largest pass so far and no other run takes part."""
    has_grown = pack.num_tokens > GROWTH * held.measured_tokens
    is_alone = len(pack.runs) == 1 and not isinstance(held.engine, LeadEngine)
    if not is_alone or pack.forward_only or held.engine.room is None or not has_grown:
        return act

    def measured() -> None:
        is_gpu = held.engine.adapters.device.type == "cuda"
        taken = measure_gpu(act) if is_gpu else measure_process(act)
        held.measured_tokens = pack.num_tokens
        if taken is not None:
            try_note(held, pack.num_tokens, taken)

    return measured


def measure_gpu(act: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    act()
    return torch.cuda.max_memory_allocated() - before


def measure_process(act: Callable[[], None]) -> int | None:
    """Beside what lives. None: this system does not tell."""
    trim()
    before = read_status("VmRSS")
    if before is None or not forget_peak():
        act()
        return None
    act()
    peak = read_status("VmHWM")
    return None if peak is None else max(0, peak - before)


def trim() -> None:
    """What earlier passes freed goes back to the system, else it hides what this one takes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def read_status(key: str) -> int | None:
    if not STATUS.is_file():
        return None
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{key}:"), None)


def forget_peak() -> bool:
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def try_note(held: Held, num_tokens: int, taken: int) -> None:
    """The pass was made, whether its peak is written down or not."""
    try:
        note(held, num_tokens, taken)
    except DatabaseError as error:
        logger.warning("a pass's peak is not written down: %s", error)


def note(held: Held, num_tokens: int, taken: int) -> None:
    """The largest pass counts, and what was predicted of it."""
    engine, run = held.engine, held.run
    assert engine.room is not None
    spec = engine.find_weights(run.pk).spec
    standing = count_weights(engine) + measure_run(engine, run.pk).total
    predicted = engine.room.plan(spec).predict(num_tokens).total
    Run.objects.filter(pk=run.pk).update(peak_bytes=standing + taken, predicted_bytes=predicted)
