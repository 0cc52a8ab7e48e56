"""What rank 0 gives the others to do, and how all of them end it alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safetensors import SafetensorError

from training.engine.ranks import OutOfStep, Ranks
from training.errors import InvalidInput

# Of a rank by itself, which has let no other one wait: what cannot be read, or is not understood.
FAILURES = (OSError, ValueError, LookupError, SafetensorError)
TOGETHER = frozenset(
    {"run_shares", "take_step", "gather"}
)  # ranks wait for each other in the middle

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A verb of an engine, for all ranks; or `load` and `close` of one. No verb: stop."""

    verb: str = ""
    engine: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What it may end with on all ranks; after anything else they are lost to each other."""
        return (OutOfStep, InvalidInput) if self.verb in TOGETHER else (OutOfStep, *FAILURES)


def build(ranks: Ranks, act: Callable[[], T], *, in_turns: bool) -> T:
    """What each rank makes by itself, before they do anything together; all have it, or none.
    `in_turns`: one after the other, where all at once would take too much memory.
    """
    built: list[T] = []
    failure: Exception | None = None
    for turn in range(ranks.plan.size if in_turns else 1):
        if turn == ranks.rank or not in_turns:
            try:
                built.append(act())
            except FAILURES as error:
                failure = error
        if in_turns:
            ranks.tell_all(None)
    ranks.agree(None if failure is None else str(failure), "whether a model can be read")
    if failure is not None:
        raise failure
    return built[0]


def obey(ranks: Ranks, order: Order, act: Callable[[], T]) -> T:
    """Every rank comes here with the same order; all succeed, or all raise the same."""
    try:
        done = act()
    except OutOfStep:
        raise
    except order.failures as error:
        ranks.agree(str(error), f"how {order.verb} ended")
        raise
    ranks.agree(None, f"how {order.verb} ended")
    return done
