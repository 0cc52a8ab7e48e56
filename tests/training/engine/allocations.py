"""What tensors take, counted allocation by allocation: the same on every machine and day."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocations:
    """Bytes, beside what was there before."""

    peak: int
    largest: int  # of one tensor


def count_allocations(act: Callable[[], object]) -> Allocations:
    gc.collect()
    gc.disable()  # what earlier tests left would be freed in between
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            act()
    finally:
        gc.enable()
    events = profiler.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    taken = peak = largest = 0
    for event in sorted(memory, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        peak, largest = max(peak, taken), max(largest, event.nbytes())
    return Allocations(peak=peak, largest=largest)
