"""Runs a program that ends when we do: `python leashed.py PROGRAM ARGUMENTS`."""

import ctypes
import os
import signal
import sys

PARENT_DEATH_SIGNAL = 1


def main() -> None:
    """In the place of this process; whoever began it may already be gone."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        sys.exit(1)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
