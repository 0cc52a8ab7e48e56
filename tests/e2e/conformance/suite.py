"""Plays every case with the installed SDK against a live server; prints the report as JSON."""

import json
import os
import platform
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

import auth_cases  # noqa: F401 - cases register themselves
import command_cases  # noqa: F401
import future_cases  # noqa: F401
import option_cases  # noqa: F401
import rest_cases  # noqa: F401
import sampling_cases  # noqa: F401
import service_cases  # noqa: F401
import tinker
import training_cases  # noqa: F401
from endings import BROKEN, SUPPORTED, UNAVAILABLE, Ending, describe_error, settle
from registry import CASES, Case
from surface import (
    AUTH,
    COMMANDS,
    find_class,
    find_classes,
    find_forms,
    find_parameters,
    find_surface,
)
from world import World

CALL_SECONDS = 120.0  # no call of the tiny model takes a tenth of it
NO_CASE = "No case of this suite calls it."
NO_PARAMETER = "No case of this suite gives it."
NO_ANSWER = f"It was left without an answer for {CALL_SECONDS:.0f} s."


def play(case: Case, world: World) -> Ending:
    """In a thread of its own: a call that never ends must not take the suite along."""
    world.performed.clear()
    played = ThreadPoolExecutor(1).submit(case.play, world)
    if not wait([played], CALL_SECONDS).done:
        return Ending(BROKEN, NO_ANSWER)
    error = played.exception()
    return Ending(SUPPORTED) if error is None else settle(describe_error(error))


def find_missed(case: Case, world: World) -> list[str]:
    """Forms of the call that exist and that the case did not perform."""
    owner = find_class(case.group)
    forms = find_forms(owner, case.call) if owner else [case.call]
    is_counted = owner or case.group in (AUTH, COMMANDS)
    return [form for form in forms if is_counted and (case.group, form) not in world.performed]


def examine(case: Case, surface: dict[str, list[str]], world: World) -> dict[str, Any]:
    began = time.monotonic()
    ending = Ending(UNAVAILABLE)
    if case.call in surface.get(case.group, ()):
        ending = play(case, world)
        if missed := find_missed(case, world):
            ending = Ending(BROKEN, f"The case does not call {', '.join(missed)}: {ending}")
    seconds = time.monotonic() - began
    print(f"{seconds:6.1f} s  {case.group}.{case.call}: {ending}", file=sys.stderr, flush=True)
    return describe(case.group, case.call, ending, case.note or world.find_note(case.call))


def describe(group: str, call: str, ending: Ending, note: str = "") -> dict[str, Any]:
    told = {"status": ending.status, "sentence": ending.sentence}
    is_there = ending.status != UNAVAILABLE
    return {"group": group, "call": call} | told | {"note": note if is_there else ""}


def find_uncovered(surface: dict[str, list[str]]) -> list[dict[str, Any]]:
    known = {(case.group, case.call) for case in CASES}
    calls = [(group, call) for group, several in surface.items() for call in several]
    ending = Ending(BROKEN, NO_CASE)
    return [describe(*each, ending) for each in calls if each not in known]


def find_unpassed(surface: dict[str, list[str]], world: World) -> list[dict[str, Any]]:
    """Parameters that no case has given to the method they belong to."""
    ending = Ending(BROKEN, NO_PARAMETER)
    return [
        describe(owner.__name__, f"{form}({name})", ending)
        for owner in find_classes()
        for call in surface[owner.__name__]
        for form in find_forms(owner, call)
        for name in find_parameters(owner, form)
        if (owner.__name__, form, name) not in world.passed
    ]


def sort_calls(calls: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """In the SDK's own order of classes; what it does not have comes last."""

    def place(call: dict[str, Any]) -> tuple[int, str, str]:
        group = call["group"]
        known = groups.index(group) if group in groups else len(groups)
        return known, group, call["call"]

    return sorted(calls, key=place)


def main() -> None:
    warnings.filterwarnings("ignore")
    wanted = sys.argv[1:]
    surface, world = find_surface(), World()
    cases = [case for case in CASES if not wanted or case.group in wanted or case.call in wanted]
    calls = [examine(case, surface, world) for case in cases]
    if not wanted:
        calls += find_uncovered(surface) + find_unpassed(surface, world)
    report = {
        "sdk_version": tinker.__version__,
        "python": platform.python_version(),
        "ran_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "calls": sort_calls(calls, list(surface)),
    }
    if hasattr(world.service, "close"):
        world.service.close("success").result(timeout=CALL_SECONDS)
    print(json.dumps(report), flush=True)
    os._exit(0)  # without waiting for what a call left behind


if __name__ == "__main__":
    main()
