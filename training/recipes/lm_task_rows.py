"""What a task of lm-eval asks of its rows, filled in by a process of its own.

`python -m training.recipes.lm_task_rows` reads a task and rows on its standard input. A template of
a few letters may ask for more memory and time than the machine has: these are bounded there.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import InvalidInput
from training.recipes.lm_task import make_items, read_task

MAX_SECONDS = 20
MAX_MEMORY_BYTES = 2 * 1024**3
REFUSED = 3  # the exit status of a process that said why


def fill_in(task: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of a suite; what the process refuses, or does not live through, is a sentence."""
    command = [sys.executable, "-m", "training.recipes.lm_task_rows"]
    given = json.dumps({"task": task, "rows": rows}).encode()
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, input=given, capture_output=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"the templates took longer than {MAX_SECONDS} s to fill in") from None
    if done.returncode == REFUSED:
        raise InvalidInput(done.stdout.decode("utf-8", "replace"))
    if done.returncode:
        raise InvalidInput("the templates need more memory or time than a task may take")
    return list(json.loads(done.stdout))


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    given = json.load(sys.stdin)
    try:
        items = make_items(read_task(given["task"]), given["rows"])
    except InvalidInput as error:
        sys.stdout.write(str(error))
        return REFUSED
    sys.stdout.write(json.dumps(items))
    return 0


if __name__ == "__main__":
    sys.exit(main())
