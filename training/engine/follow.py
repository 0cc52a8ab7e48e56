"""The process of a rank that follows: it does what rank 0 does, until it is told to stop."""

import ctypes
import logging
import os
import signal
import sys
from functools import partial
from typing import cast

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.engine.orders import Order, obey
from training.engine.ranked import RankedEngine
from training.engine.ranks import HOST, Plan, Ranks, Sharing

PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Follower:
    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.engines: dict[int, RankedEngine] = {}

    def run(self) -> None:
        while (order := cast(Order, self.ranks.hear())).verb:
            try:
                obey(self.ranks, order, partial(self.act, order))
            except order.failures as error:
                logger.info("rank %s: %s: %s", self.ranks.rank, order.verb, error)

    def act(self, order: Order) -> None:
        if order.verb == "load":
            self.engines[order.engine] = RankedEngine.load_on(
                self.ranks, *order.args, **order.kwargs
            )
        elif order.verb == "close":
            del self.engines[order.engine]
        else:
            getattr(self.engines[order.engine], order.verb)(*order.args, **order.kwargs)


def die_with_parent(parent: int) -> None:
    """Also with one that is killed, and cannot tell anybody."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the worker has ended already")


def main() -> None:
    port, parent, size, sharing, device, limit = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    die_with_parent(int(parent))
    plan = Plan(
        size=int(size), sharing=cast(Sharing, sharing), device=device, limit_seconds=float(limit)
    )
    if device == "cpu":
        torch.set_num_threads(plan.num_threads)
    rank = int(os.environ["RANK"]) + 1  # the agent counts followers from 0
    ranks = Ranks.join(TCPStore(HOST, int(port), wait_for_workers=False), rank, plan)
    Follower(ranks).run()
    ranks.leave()


if __name__ == "__main__":
    main()
