"""The sandbox's own process: warm, behind walls, and a fork of it for every answer.

It never runs what it is given: each job reads its own from a pipe, in a process tree that ends
with it. Says on its socket what its walls are, and after each job how that ended.
"""

import gc
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NoReturn

from training.errors import InvalidInput
from training.recipes.grading_code import Wire, find_block, run_tests
from training.recipes.grading_code_side import serve_functions, serve_program
from training.recipes.grading_math import math_equal
from training.recipes.grading_schema import make_validator, matches_schema
from training.recipes.grading_tasks import list_tasks, make_rows, score_task
from workers import sandbox_walls as walls

MAX_FDS = 256
CODE_PROCESSES = 8
Result = dict[str, Any]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    slot, wanted, hidden = int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    logging.disable()
    warm_up()
    known = {
        "uid": walls.FIRST_UID + slot if walls.may_change_user(slot) else 0,
        "size": read_size(),
    }
    missing = "HONE_SANDBOX=limits" if wanted == "limits" else put_up_walls(hidden)
    channel.send(json.dumps({"missing": missing}).encode())
    while begin_job(channel, {**known, "is_open": bool(missing)}):
        pass


def warm_up() -> None:
    """What jobs would import one by one, and what is slow the first time."""
    math_equal("$x$", "$x$")
    score_task("chain_sum", "1", {"question": "", "answer": "1", "metadata": {}})
    matches_schema("1", {"type": "integer"})
    gc.collect()
    gc.freeze()


def put_up_walls(hidden: list[str]) -> str:
    """Why there are none; empty: there are."""
    python = [
        path for each in (sys.prefix, sys.base_prefix) for path in (each, os.path.realpath(each))
    ]
    try:
        walls.enclose(python, hidden)
    except OSError as error:
        return str(error)
    return ""


def read_size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def begin_job(channel: socket.socket, known: Mapping[str, Any]) -> bool:
    """False: whom it works for has gone."""
    message, fds, _, _ = socket.recv_fds(channel, 4096, 2)
    if not message:
        return False
    limits = {**json.loads(message), **known}
    keeper = os.fork()
    if not keeper:
        channel.close()
        keep(fds, limits)
    for fd in fds:
        os.close(fd)
    _, status = os.waitpid(keeper, 0)
    channel.send(json.dumps({"late": os.waitstatus_to_exitcode(status) == LATE}).encode())
    return True


LATE = 3


def keep(fds: list[int], limits: Mapping[str, Any]) -> NoReturn:
    """Watches one job, and ends it with all that it began."""
    room = make_room(limits)
    job = os.fork()
    if not job:
        os._exit(work(fds, limits, room))
    for fd in fds:
        os.close(fd)
    watch = os.pidfd_open(job)
    in_time, _, _ = select.select([watch], [], [], limits["seconds"])
    end(job, limits)
    if limits["is_open"]:
        shutil.rmtree(room, ignore_errors=True)
    os._exit(0 if in_time else LATE)


def make_room(limits: Mapping[str, Any]) -> str:
    """An empty folder that a job may write in."""
    if not limits["is_open"]:
        walls.begin_room()
        return walls.ROOM
    walls.adopt_orphans()
    room = mkdtemp(prefix="hone-job-")
    if limits["uid"]:
        os.chown(room, limits["uid"], limits["uid"])
    return room


def end(job: int, limits: Mapping[str, Any]) -> None:
    """Behind walls the first process takes all others with it."""
    if limits["is_open"]:
        walls.end_children()
        return
    with suppress(ProcessLookupError):
        os.kill(job, signal.SIGKILL)
    os.waitpid(job, 0)


def work(fds: list[int], limits: Mapping[str, Any], room: str) -> int:
    """One job: reads what is public of it, then what its code must not know; writes its result."""
    source, sink = fds
    quieten(room)
    public = read_part(source)
    wire = begin_code(public, limits) if "code" in public else None
    confine(limits, processes=CODE_PROCESSES if wire else 1)
    private = read_part(source)
    with os.fdopen(sink, "wb") as pipe:
        for kind, job in private.get("jobs", [(public["kind"], private)]):
            pipe.write(json.dumps(grade(kind, wire, job)).encode() + b"\n")
            pipe.flush()
    return 0


def grade(kind: str, wire: Wire | None, job: Mapping[str, Any]) -> Result:
    try:
        return JOBS[kind](wire, job)
    except InvalidInput as error:
        return {"error": str(error)}
    except (MemoryError, RecursionError) as error:
        return {"error": f"it needs more than it may have: {type(error).__name__}"}


def read_part(fd: int) -> Any:
    """Not a byte more than one part: what is read ahead would be in the memory of forks."""
    size = int.from_bytes(read_exactly(fd, 8), "big")
    return json.loads(read_exactly(fd, size))


def read_exactly(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError("the job ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def quieten(room: str) -> None:
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.environ.clear()
    os.environ["TMPDIR"] = room
    os.chdir(room)


def begin_code(public: Mapping[str, Any], limits: Mapping[str, Any]) -> Wire:
    """A process for the answer's code, before this one knows the tests."""
    asks, answers = os.pipe(), os.pipe()
    if not limits["is_open"]:
        walls.unshare(walls.PIDS)
    if not os.fork():
        be_code(asks[0], answers[1], public, limits)
    os.close(asks[0])
    os.close(answers[1])
    return Wire(answers[0], asks[1])


def be_code(
    asks: int, answers: int, public: Mapping[str, Any], limits: Mapping[str, Any]
) -> NoReturn:
    for fd in set(range(3, MAX_FDS)) - {asks, answers}:
        with suppress(OSError):
            os.close(fd)
    os.setsid()  # as an ordinary user's it could else end the workers, by their process group
    confine(limits, processes=CODE_PROCESSES)
    serve = serve_program if public["is_program"] else serve_functions
    with suppress(EOFError, OSError):
        serve(Wire(asks, answers), find_block(public["code"]))
    os._exit(0)


def confine(limits: Mapping[str, Any], *, processes: int) -> None:
    others = walls.count_tasks() if limits["is_open"] and not limits["uid"] else 0
    walls.give_up(limits["uid"])
    walls.limit(
        seconds=limits["seconds"],
        memory_bytes=limits["size"] + (limits["memory_mib"] << 20),
        processes=processes + others,
    )


def grade_tests(wire: Wire | None, private: Mapping[str, Any]) -> Result:
    assert wire is not None  # the kind has code
    score, note = run_tests(wire, private["tests"], private["entry"], partial=private["partial"])
    return {"score": score, "note": note}


def grade_schema(_wire: Wire | None, private: Mapping[str, Any]) -> Result:
    score, note = matches_schema(private["completion"], private["schema"])
    return {"score": score, "note": note}


JOBS: dict[str, Callable[[Wire | None, Mapping[str, Any]], Result]] = {
    "unit_tests": grade_tests,
    "json_schema": grade_schema,
    "math": lambda _, job: {"score": math_equal(job["completion"], job["target"])},
    "reasoning_gym": lambda _, job: {
        "score": score_task(job["task"], job["completion"], job["entry"])
    },
    "check_schema": lambda _, job: {"ok": bool(make_validator(job["schema"]))},
    "list_tasks": lambda _, __: {"tasks": list_tasks()},
    "make_rows": lambda _, job: {
        "rows": make_rows(job["task"], seed=job["seed"], size=job["size"], config=job["config"])
    },
}


if __name__ == "__main__":
    main()
