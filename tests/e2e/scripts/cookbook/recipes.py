"""Runs recipes, as `python -m MODULE FLAGS` would: one a line of input, each in a fork.

What all of them import is imported once. A line is {"target", "flags", "log"}; the answer is the
number of the process, then its exit status.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import tinker_cookbook.distillation.train_on_policy
import tinker_cookbook.eval.benchmarks
import tinker_cookbook.preference.train_dpo
import tinker_cookbook.rl.train
import tinker_cookbook.supervised.train  # noqa: F401


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(**json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(target: str, flags: list[str], log: str) -> None:
    """Everything it says goes to the log. Does not return."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [target, *flags]
    status = 0
    try:
        if target.endswith(".py"):
            sys.path.insert(0, str(Path(target).parent))
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


main()
