"""The pool of sandbox processes: what runs in them is behind walls and within limits."""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from queue import Queue
from typing import Any

from django.conf import settings

from training.errors import InvalidInput

START_SECONDS = 120.0
GRACE_SECONDS = 60.0  # for its last word: a machine may be busy
MAX_RESULT = 64 << 20
NUM_PROCESSES = min(4, os.cpu_count() or 1)
OPEN = "HONE_SANDBOX"  # "limits": limits on time and memory alone, for machines without walls


class SandboxLostError(Exception):
    """Its process ended, which no job should be able to bring about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`public` may be known to an answer's code, `private` not."""

    kind: str
    private: Mapping[str, Any]
    public: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 10.0
    memory_mib: int = 256


class Process:
    """One warm process; one job at a time."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.missing = ""  # why it has no walls

    def run(self, job: Job) -> dict[str, Any]:
        try:
            if self.channel is None:
                self.begin()
            assert self.channel is not None
            return self._run(self.channel, job)
        except (OSError, SandboxLostError):
            self.stop()
            raise

    def begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_SECONDS)
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "workers.sandbox_process"),
                    *(str(theirs.fileno()), str(self.slot), os.environ.get(OPEN, "")),
                    str(settings.HONE_HOME.resolve()),
                ],
                cwd=settings.ROOT,
                env={"PATH": "/usr/bin:/bin", **dict.fromkeys(ONE_THREAD, "1")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.channel = ours
        self.missing = read_message(ours)["missing"]

    def _run(self, channel: socket.socket, job: Job) -> dict[str, Any]:
        if self.missing and "code" in job.public and os.environ.get(OPEN) != "limits":
            raise InvalidInput(
                f"this machine cannot shut in an answer's code ({self.missing}), so it is not run; "
                f"{OPEN}=limits runs it with limits on time and memory alone"
            )
        source, feed = os.pipe()
        result, sink = os.pipe()
        limits = {"seconds": job.seconds, "memory_mib": job.memory_mib}
        socket.send_fds(channel, [json.dumps(limits).encode()], [source, sink])
        os.close(source)
        os.close(sink)
        writer = threading.Thread(target=write_job, args=(feed, job))
        writer.start()
        with os.fdopen(result, "rb") as pipe:
            body = pipe.read(MAX_RESULT)  # to its end, which comes with the job's
        channel.settimeout(GRACE_SECONDS)
        ended = read_message(channel)
        writer.join()
        if job.kind == "batch":
            return {"results": read_results(body)}
        return {"late": True} if ended["late"] else read_result(body)

    def stop(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def read_message(channel: socket.socket) -> dict[str, Any]:
    message = channel.recv(65536)
    if not message:
        raise SandboxLostError("the sandbox's process ended")
    return dict(json.loads(message))


def write_job(feed: int, job: Job) -> None:
    try:
        with os.fdopen(feed, "wb") as pipe:
            for part in ({"kind": job.kind, **job.public}, job.private):
                body = json.dumps(part).encode()
                pipe.write(len(body).to_bytes(8, "big") + body)
    except BrokenPipeError:
        return  # it was ended before it had read everything


def read_result(body: bytes) -> dict[str, Any]:
    """Nothing: it was killed, or left without a word; neither is a pass."""
    try:
        result = json.loads(body)
    except ValueError:
        return {"gone": True}
    return result if isinstance(result, dict) else {"gone": True}


def read_results(body: bytes) -> list[dict[str, Any]]:
    """Of a batch: those lines that were written whole."""
    return [read_result(line) for line in body.split(b"\n")[:-1]]


class Sandbox:
    """As many processes as there are cores, started when they are first needed."""

    def __init__(self, num_processes: int = NUM_PROCESSES) -> None:
        self.idle: Queue[Process] = Queue()
        self.processes = [Process(slot) for slot in range(num_processes)]
        for process in self.processes:
            self.idle.put(process)
        self.threads = ThreadPoolExecutor(num_processes, thread_name_prefix="sandbox")

    def run(self, job: Job) -> dict[str, Any]:
        process = self.idle.get()
        try:
            return process.run(job)
        finally:
            self.idle.put(process)

    def run_all(
        self, jobs: Sequence[Job], keep_going: Callable[[], None]
    ) -> list[dict[str, Any] | Exception]:
        """In the jobs' order; what one of them raised in its place."""
        futures = [self.threads.submit(self._try, job) for job in jobs]
        try:
            results = []
            for future in futures:
                keep_going()
                results.append(future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return results

    def _try(self, job: Job) -> dict[str, Any] | Exception:
        try:
            return self.run(job)
        except (InvalidInput, OSError, SandboxLostError) as error:
            return error

    @property
    def missing(self) -> str:
        """Why this machine allows no walls; empty: it does, or nothing has run yet."""
        return next((each.missing for each in self.processes if each.missing), "")

    def stop(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.stop()


@cache
def open_sandbox() -> Sandbox:
    """One for a process and all its threads."""
    sandbox = Sandbox()
    atexit.register(sandbox.stop)
    return sandbox
