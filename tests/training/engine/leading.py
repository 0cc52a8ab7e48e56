"""A process that leads two others, which load a model; then it waits to be killed."""

import logging
import os
import signal
import sys
from pathlib import Path

import torch

from training.engine.lead import Lead
from training.engine.ranks import Plan

CODE = 7


def lose(why: str) -> None:
    logging.error("lost: %s", why)
    os._exit(CODE)


def main() -> None:
    lead = Lead(Plan(size=3, limit_seconds=60.0), lose)
    lead.load(Path(sys.argv[1]), dtype=torch.float32, token_budget=64)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
