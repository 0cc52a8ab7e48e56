"""A worker whose models are held by several processes: how many, and that they end together."""

import logging
import os
import sys
from typing import cast

import torch

from training.engine.lead import Lead
from training.engine.ranks import Plan, Sharing
from training.errors import InvalidInput
from webapp.settings import read_int

LOST = 70  # the exit code of a worker that has lost one of its ranks

logger = logging.getLogger(__name__)


def read_plan(device: str) -> Plan | None:
    """None: this process alone. A worker that was told nonsense does not start."""
    size = read_int("HONE_RANKS", 1)
    sharing = cast(Sharing, os.environ.get("HONE_SHARD") or "fsdp")
    plan = Plan(size=size, sharing=sharing, device=device)
    try:
        plan.check()
    except InvalidInput as error:
        raise SystemExit(f"HONE_RANKS={size} HONE_SHARD={sharing}: {error}") from error
    return plan if size > 1 else None


def open_lead(plan: Plan) -> Lead:
    """The other processes start, and share the CPU's cores with this one."""
    logger.info("starting %s", plan)
    lead = Lead(plan, end_process)
    if plan.device == "cpu":
        torch.set_num_threads(plan.num_threads)
    return lead


def end_process(why: str) -> None:
    """At once, as if it was killed: what the ranks hold is no whole any more. The next worker goes
    on from the journal.
    """
    is_raised = sys.exc_info()[0] is not None
    logger.critical("%s: this worker ends with it", why, exc_info=is_raised)
    os._exit(LOST)
