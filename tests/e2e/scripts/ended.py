"""Runs a program as `python PROGRAM ...` does, but for the end of the interpreter.

A thread of pyqwest, by which the SDK speaks HTTP, may be in Python's code at that moment, of an
answer that was taken long ago. Python 3.11 ends such a thread, Rust does not let it, and on a busy
machine one program in fifty aborts, after all of its work is done.
"""

import atexit
import os
import runpy
import sys
import threading
from pathlib import Path


def run(program: str) -> int:
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - told as the interpreter would
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    code = run(sys.argv[0])
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
