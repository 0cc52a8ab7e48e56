"""What a diagnostic says of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from webapp.runs.diagnostics import State
from webapp.runs.records import Finding

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`memory` is handed back at the next look: what need not be read again."""

    state: State
    text: str
    step: int = 0  # where it was first seen
    level: str = Finding.Level.WARNING
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)


def found(text: str, *, step: int, **rest: Any) -> Verdict:
    return Verdict(state=State.FOUND, text=text, step=step, **rest)


def clear(text: str, memory: Mapping[str, Any] = NOTHING) -> Verdict:
    return Verdict(state=State.CLEAR, text=text, memory=memory)


def waiting(text: str, memory: Mapping[str, Any] = NOTHING) -> Verdict:
    return Verdict(state=State.WAITING, text=text, memory=memory)


def not_applicable(text: str, memory: Mapping[str, Any] = NOTHING) -> Verdict:
    return Verdict(state=State.NOT_APPLICABLE, text=text, memory=memory)
