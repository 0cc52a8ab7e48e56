"""Isolation tests that people start: made by who owns the device, between two turns."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

from training.engine.core import Engine
from training.engine.isolation import Difference, Report, walk
from webapp.core.errors import UserError
from webapp.fleet.isolation import begin_isolation_test, finish_isolation_test
from webapp.fleet.models import BaseModel
from workers.device import Device


def run_isolation_test(device: Device, test_id: str, go_on: Callable[[], object]) -> None:
    """Whoever trains has a turn, `go_on`, between two of its passes. Raises UserError where it
    cannot be made."""
    base_model = begin_isolation_test(test_id=test_id, worker=device.setup.name)
    if base_model is None:
        return
    engine, seconds = find_engine(device, base_model), 0.0
    with closing(walk(engine)) as steps:
        while True:
            started = time.perf_counter()
            try:
                next(steps)
            except StopIteration as end:
                store(test_id, end.value, seconds + time.perf_counter() - started)
                return
            seconds += time.perf_counter() - started
            go_on()
            if find_engine(device, base_model) is not engine:
                raise UserError(f"The worker has loaded {base_model.name} again meanwhile.")


def find_engine(device: Device, base_model: BaseModel) -> Engine:
    """Nothing is moved out of memory for a test."""
    engine = device.engines.get(base_model.pk)
    if engine is None:
        raise UserError(f"The worker holds no {base_model.name} that runs share, at this moment.")
    return engine


def store(test_id: str, report: Report, seconds: float) -> None:
    finish_isolation_test(
        test_id=test_id,
        dtype=report.dtype,
        num_tokens=report.num_tokens,
        differences=[describe(difference) for difference in report.differences],
        is_passed=report.is_passed,
        seconds=seconds,
    )


def describe(difference: Difference) -> dict[str, Any]:
    """JSON knows no infinities: what is no number is null."""
    columns = {**asdict(difference), "share": difference.share, "is_within": difference.is_within}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in columns.items()
    }
