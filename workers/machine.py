"""The machine under a worker: what people call it, its memory, how fast it multiplies."""

import os
import time

import torch

from training.engine.ranks import Plan


def describe_machine(device: str, plan: Plan | None) -> tuple[str, int]:
    """What people read of it, and the memory of all its ranks."""
    suffix = f", {plan}" if plan else ""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return properties.name + suffix, properties.total_memory * (plan.size if plan else 1)
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{cores} CPU core{'s' if cores > 1 else ''}{suffix}", memory


def measure_flops(device: str, dtype: torch.dtype, plan: Plan | None) -> float:
    """The best of some square matrix products: what estimates begin with on a new machine."""
    size = 4096 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    return (plan.size if plan else 1) * max(_time_product(left) for _ in range(20))


def _time_product(left: torch.Tensor) -> float:
    started = time.perf_counter()
    product = left @ left
    product.sum().item()  # waits for the device
    return 2 * left.shape[0] ** 3 / (time.perf_counter() - started)
