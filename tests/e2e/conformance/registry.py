"""Cases by group and call. A call of the SDK without one fails the suite."""

from collections.abc import Callable
from dataclasses import dataclass

from world import World

Play = Callable[[World], object]


@dataclass(frozen=True)
class Case:
    group: str
    call: str
    play: Play
    note: str = ""  # what the reader of the report should know beside how it ended


CASES: list[Case] = []


def case(group: str, *calls: str, note: str = "") -> Callable[[Play], Play]:
    """Registers what it decorates for each of `calls`; its own name where none is given."""

    def register(play: Play) -> Play:
        CASES.extend(Case(group, call, play, note) for call in calls or (play.__name__,))
        return play

    return register
