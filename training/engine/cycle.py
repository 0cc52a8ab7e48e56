"""Clock cycles: requests of several runs go through a model together, one packed pass at a time.

What goes into a pass is chosen here and executed elsewhere. Each request ends with its own last
datum, and new ones may come between two passes.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from training.engine.optim import Weights
from training.engine.packing import Item
from training.engine.tally import Tally
from training.engine.vectors import Coupled, ask_vectors
from training.errors import InvalidInput
from training.fairness import Shares
from training.graphs import CALLS_A_TOKEN
from training.types import ForwardBackward, ForwardBackwardOutput

HELPINGS = 4  # a pass has room for so many runs at least, each with neighbours that share prefixes

Outcome = ForwardBackwardOutput | InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """What goes through the model at once. Items of one run lie together, in its order."""

    items: Sequence[Item]
    forward_only: bool

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.run for item in self.items))

    @property
    def num_tokens(self) -> int:
        return sum(item.length for item in self.items)

    def count_tokens(self, run: str) -> int:
        return sum(item.length for item in self.items if item.run == run)


class Executor(Protocol):
    """What a cycle asks of an engine."""

    token_budget: int

    def find_weights(self, run: str) -> Weights:
        """InvalidInput where there are none."""

    def check(self, run: str, request: ForwardBackward) -> None:
        """InvalidInput where it cannot be computed."""

    def keep_gradients(self, run: str) -> torch.Tensor:
        """What `restore_gradients` goes back to."""

    def restore_gradients(self, run: str, kept: torch.Tensor) -> None: ...

    def run_pack(self, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        """Adds to gradients and tallies."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One run's request on its way."""

    tally: Tally
    left: deque[Item]
    before: torch.Tensor | None  # gradients to go back to, where the loss may find an error
    is_alone: bool
    coupled: Coupled | None = None  # where its datums are compared with each other
    num_out: int = 0  # items in passes that have not been settled

    @property
    def shape(self) -> tuple[bool, int]:
        """Only equals share a pass: the targets of a pack are a rectangle."""
        return self.tally.request.forward_only, self.left[0].datum.num_targets

    @property
    def calls_a_datum(self) -> float:
        """In tokens of a pass, as in `ForwardBackward.weight`."""
        loss = self.tally.request.custom
        return len(loss.nodes) / CALLS_A_TOKEN if loss else 0.0

    @property
    def is_over(self) -> bool:
        return not self.left and not self.num_out


class Cycle:
    """At most one request of a run. `shares` says whose turn it is, and knows every run here."""

    def __init__(self, executor: Executor, shares: Shares) -> None:
        self.executor = executor
        self.shares = shares
        self.entries: dict[str, Entry] = {}

    def add(self, run: str, request: ForwardBackward, *, is_alone: bool = False) -> None:
        """Raises InvalidInput where it cannot be computed. `is_alone`: in passes of its own."""
        self.executor.check(run, request)
        may_fail = request.custom is not None and not request.forward_only
        coupled = Coupled.of(request)
        request = ask_vectors(request) if request.asks_vectors else request
        self.entries[run] = Entry(
            tally=Tally.empty(request),
            left=line_up(run, request),
            before=self.executor.keep_gradients(run) if may_fail else None,
            is_alone=is_alone,
            coupled=coupled,
        )

    def drop(self, run: str) -> None:
        """Whatever passes it was in have left its gradients as they are."""
        self.entries.pop(run, None)

    def step(self) -> dict[str, Outcome]:
        """One pass; returns what has ended with it."""
        pack = self.take_pack()
        self.execute(pack)
        return self.settle(pack)

    def finish(self) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        while self.entries:
            outcomes |= self.step()
        return outcomes

    def take_pack(self) -> Pack:
        """The run that had least, and what fits beside it. There must be items that wait."""
        waiting = [run for run, entry in self.entries.items() if entry.left]
        first = self.shares.find_next(waiting)
        shape = self.entries[first].shape
        taken: list[Item] = []
        room = self.executor.token_budget
        seats = self._list_fellows(first, waiting)
        while seats and (room > 0 or not taken):
            run = self.shares.find_next(seats)
            helping = self._take(run, room, is_first=not taken)
            taken += helping
            room -= sum(item.length for item in helping)
            entry = self.entries[run]
            if not helping or not entry.left or entry.shape != shape:
                seats.remove(run)
        # Within a run the order is that of its items, which was there before.
        items = sorted(taken, key=lambda item: item.run)
        return Pack(items=items, forward_only=shape[0])

    def _list_fellows(self, first: str, waiting: Sequence[str]) -> list[str]:
        head = self.entries[first]
        if head.is_alone:
            return [first]
        return [
            run
            for run in waiting
            if not self.entries[run].is_alone and self.entries[run].shape == head.shape
        ]

    def _take(self, run: str, room: int, *, is_first: bool) -> list[Item]:
        """A helping of what comes next; one item may be larger than all the room of a pass."""
        entry, helping, num_tokens = self.entries[run], list[Item](), 0
        shape = entry.shape
        enough = max(1, self.executor.token_budget // HELPINGS)
        while entry.left and entry.shape == shape and num_tokens < enough:
            fits = num_tokens + entry.left[0].length <= room
            if not fits and not (is_first and not helping):
                break
            helping.append(entry.left.popleft())
            num_tokens += helping[-1].length
        entry.num_out += len(helping)
        self.shares.charge(run, num_tokens + entry.calls_a_datum * len(helping))
        return helping

    def execute(self, pack: Pack) -> None:
        tallies = {run: self.entries[run].tally for run in pack.runs}
        self.executor.run_pack(pack, tallies)

    def settle(self, pack: Pack) -> dict[str, Outcome]:
        """Count an executed pass. Where it broke, drop its runs instead."""
        ended = {}
        for item in pack.items:
            self.entries[item.run].num_out -= 1
        for run in pack.runs:
            entry = self.entries[run]
            if entry.tally.error is not None:
                entry.left.clear()
            if entry.is_over and not self._begin_again(run, entry):
                ended[run] = self._end(run)
        return ended

    def _begin_again(self, run: str, entry: Entry) -> bool:
        """With what the first time has told, where datums are compared with each other."""
        request = entry.coupled.advance(entry.tally) if entry.coupled else None
        if request is None:
            return False
        entry.tally, entry.left = Tally.empty(request), line_up(run, request)
        return True

    def _end(self, run: str) -> Outcome:
        entry, weights = self.entries.pop(run), self.executor.find_weights(run)
        if entry.tally.error is not None:
            if entry.before is not None:  # passes so far have added theirs
                self.executor.restore_gradients(run, entry.before)
            return entry.tally.error
        if not entry.tally.request.forward_only:
            weights.has_gradients = True
            weights.counts.num_loss_tokens += entry.tally.num_loss_tokens
            weights.counts.num_sequences += entry.tally.num_sequences
        return entry.coupled.told if entry.coupled and entry.coupled.told else entry.tally.finish()


def line_up(run: str, request: ForwardBackward) -> deque[Item]:
    """As passes take them."""
    items = [Item(run=run, index=index, datum=datum) for index, datum in enumerate(request.data)]
    return deque(sorted(items, key=lambda item: item.order))
