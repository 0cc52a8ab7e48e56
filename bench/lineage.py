"""How long the server takes to draw the lineage of a project with 500 nodes: rows to page."""

import os
import subprocess
import sys
import tempfile

from bench.contest import QUIET, ROOT
from bench.rows import Row, limit_row

LIMIT_MS = 1000.0


def measure() -> list[Row]:
    """In a process and a database of its own, which it leaves behind nothing of."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, **QUIET, "HONE_HOME": home}
        environment.pop("DATABASE_URL", None)
        finished = subprocess.run(
            [sys.executable, "-m", "bench.lineage_page"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    rows = []
    for line in finished.stdout.splitlines():
        number, folds, milliseconds = line.split()
        name = f"lineage of {number} nodes, {folds}"
        rows.append(limit_row(name, float(milliseconds), LIMIT_MS, unit="ms"))
    return rows
