"""Many tenants' small batches in one pass against the same work, one tenant after another."""

import json
import os
import subprocess
import sys

from bench.contest import QUIET, ROOT
from bench.rows import Row, make_row
from bench.sft import prepare_model

NUM_TENANTS = (1, 2, 4, 8, 16)
NUM_TOKENS = 64  # of each tenant's batch
TARGETS = {8: 1.3}


def measure() -> list[Row]:
    command = [sys.executable, "-m", "bench.tenants_engine", str(prepare_model())]
    finished = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, check=True
    )
    speeds: dict[str, tuple[float, float]] = json.loads(finished.stdout)
    return [
        make_row(
            f"tenants SmolLM2-135M LoRA, {number} x {NUM_TOKENS} tokens: together, against one"
            " tenant after another",
            *speeds[str(number)],
            unit="tokens/s",
            target=TARGETS.get(number),
        )
        for number in NUM_TENANTS
    ]
