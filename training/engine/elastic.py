"""Starts the ranks that follow this process, by torch's elastic agent, and watches them."""

import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from training.engine.ranks import HOST, Plan, Ranks

WATCH_SECONDS = 0.2
END_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Followers:
    """All ranks but this process's own, on this machine. None is started a second time."""

    def __init__(self, plan: Plan, lose: Callable[[str], None]) -> None:
        """`lose` is called in another thread, when one has ended before its time."""
        # The agent warns that it is no main thread's and cannot end its children by signals:
        # they notice by themselves when this process ends.
        logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
        self.plan, self.lose = plan, lose
        self.is_ending = False
        self.store = open_store()
        self.thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def start(self) -> Ranks:
        """Returns this process's own place, once all have come."""
        for library in ("GLOO", "NCCL"):  # the followers have this from their environment
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        self.thread.start()
        return Ranks.join(self.store, 0, self.plan)

    def end(self) -> None:
        """After they were told to stop."""
        self.is_ending = True
        self.thread.join(END_SECONDS)

    def _watch(self) -> None:
        ended = "before its time"
        try:
            launch_agent(self._configure(), sys.executable, self._write_command())
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            ended = f"with code {failure.exitcode}"  # a negative one is the signal that killed it
        finally:
            if not self.is_ending:
                self.lose(f"a rank has ended {ended}")

    def _configure(self) -> LaunchConfig:
        return LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.plan.size - 1,
            run_id=uuid.uuid4().hex,
            role="follower",
            rdzv_backend="static",
            rdzv_endpoint=f"{HOST}:{self.store.port}",
            rdzv_configs={"rank": 0},
            max_restarts=0,
            monitor_interval=WATCH_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )

    def _write_command(self) -> list[str]:
        plan = self.plan
        told = [self.store.port, os.getpid(), plan.size, plan.sharing, plan.device]
        return ["-m", "training.engine.follow", *map(str, told), str(plan.limit_seconds)]


def open_store() -> TCPStore:
    """Where ranks find each other: on this machine only. It asks nobody who he is, and by itself
    it would listen on every network."""
    listener = socket.create_server((HOST, 0))
    return TCPStore(
        HOST,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # the agent opens it once more
        master_listen_fd=listener.detach(),
    )
