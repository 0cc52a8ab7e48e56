"""Runs a command in this process's group, and ends the group when whoever started it is gone.

`python -m workers.watched COMMAND ...`: standard input is a pipe that its starter never writes
to. However the starter ends, even by kill -9, the pipe closes, and no server is left behind.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

END_SECONDS = 10.0


def end(child: subprocess.Popen[bytes]) -> None:
    """Terminate, wait a little, then kill."""
    child.terminate()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


def wait_for_starter(child: subprocess.Popen[bytes], is_orphan: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    is_orphan.set()
    end(child)


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    is_orphan = threading.Event()

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=end, args=(child,), daemon=True).start()

    signal.signal(signal.SIGTERM, pass_on)
    threading.Thread(target=wait_for_starter, args=(child, is_orphan), daemon=True).start()
    code = child.wait()
    if is_orphan.is_set():  # what the command has started may live on; a starter would end it
        os.killpg(0, signal.SIGKILL)
    return code & 0xFF


if __name__ == "__main__":
    sys.exit(main())
