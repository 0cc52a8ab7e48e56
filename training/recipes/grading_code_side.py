"""The process of an answer's code: runs it, and answers what the tests ask of it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from training.recipes.grading_code import MAX_OUTPUT, Wire, decode, encode


def serve_functions(wire: Wire, code: str) -> None:
    objects: dict[int, Any] = {}
    scope: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution", "exec"), scope)  # the answer, in the sandbox
        public = {name: scope[name] for name in scope if not name.startswith("__")}
        names = {name: encode(value, objects) for name, value in public.items()}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the answer raises
        wire.send(describe(error))
        return
    wire.send({"names": names})
    serve(wire, objects, VERBS)


def serve_program(wire: Wire, code: str) -> None:
    serve(wire, {}, {"program": lambda text: run_program(code, text)})


def serve(wire: Wire, objects: dict[int, Any], verbs: dict[str, Callable[..., Any]]) -> None:
    while True:
        question = wire.receive()
        try:
            parts = [decode(each, None, objects) for each in question["parts"]]
            value = verbs[question["verb"]](*parts)
            answer = {"value": encode(value, objects)}
            if question["verb"] == "call":
                answer["changed"] = [
                    (number, encode(each, objects))
                    for number, each in enumerate(parts[1])
                    if type(each) in (list, dict, set)
                ]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the answer raises
            answer = describe(error)
        wire.send(answer)


def describe(error: BaseException) -> dict[str, str]:
    return {"raised": type(error).__name__, "text": str(error)[:500]}


def set_item(value: Any, key: Any, content: Any) -> None:
    value[key] = content


VERBS: dict[str, Callable[..., Any]] = {
    "call": lambda value, args, kwargs: value(*args, **kwargs),
    "attribute": getattr,
    "equal": lambda value, other: bool(value == other),
    "length": len,
    "truth": bool,
    "text": str,
    "contains": lambda value, item: item in value,
    "item": lambda value, key: value[key],
    "set_item": set_item,
    "iterator": iter,
    "next": next,
}


def run_program(code: str, text: str) -> str:
    """What it prints when it reads this, in a process of its own."""
    source, given = os.pipe()
    printed, sink = os.pipe()
    pid = os.fork()
    if not pid:
        for fd, place in ((source, 0), (sink, 1)):
            os.dup2(fd, place)
        for fd in (source, given, printed, sink):
            os.close(fd)
        be_program(code)
    os.close(source)
    os.close(sink)
    feeder = feed(given, text)
    output = read_all(printed)
    for each in (pid, feeder):  # as many as may live are few
        os.kill(each, signal.SIGKILL)
        os.waitpid(each, 0)
    return output


def be_program(code: str) -> None:
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115 - these two are the process's own
    try:
        exec(compile(code, "solution", "exec"), {"__name__": "__main__"})
    except BaseException:  # noqa: BLE001 - what it printed until then is what it printed
        os._exit(flush(1))
    os._exit(flush(0))


def flush(status: int) -> int:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return 1
    return status


def feed(fd: int, text: str) -> int:
    """From a process of its own: a program that prints before it reads must not block us."""
    if pid := os.fork():
        os.close(fd)
        return pid
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as pipe:
            pipe.write(text)
    except OSError:
        os._exit(1)
    os._exit(0)


def read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read(MAX_OUTPUT).decode(errors="replace")
