"""Which experts a sequence's tokens went to while it was sampled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from training.engine.routes import Routing
from training.errors import InvalidInput
from training.types import IntArray, SampleRequest


class RouteLog:
    """Of one sequence, from position `first` on; what is read a second time is noted once."""

    def __init__(self, first: int = 0) -> None:
        self.first = self.stop = first
        self.pieces: list[IntArray] = []

    def note(self, begin: int, routes: IntArray) -> None:
        """Of the positions from `begin` on; nothing is missing before them."""
        fresh = routes[self.stop - begin :]
        if len(fresh):
            self.pieces.append(fresh)
            self.stop += len(fresh)

    def read(self, start: int, stop: int) -> IntArray:
        """(N, L, k) of some positions."""
        routes: IntArray = np.concatenate(self.pieces)
        return routes[start - self.first : stop - self.first]

    def borrow(self, lender: "RouteLog", length: int) -> None:
        """The first positions are another sequence's."""
        if lender.pieces:
            self.note(0, lender.read(0, length))


class Reading(Protocol):
    """A piece of a step's row; `log` None: nobody asks where it goes."""

    @property
    def begin(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def log(self) -> RouteLog | None: ...


@contextmanager
def logging_routes(routing: Routing | None, spans: Sequence[Reading]) -> Iterator[None]:
    """Around a step."""
    if routing is None or all(span.log is None for span in spans):
        yield
        return
    with routing.record() as record:
        yield
    routes, start = record.read(), 0
    for span in spans:
        length = span.stop - span.begin
        if span.log is not None:
            span.log.note(span.begin, routes[start : start + length])
        start += length


def check_wish(request: SampleRequest, routing: Routing | None) -> None:
    if request.with_routes and routing is None:
        raise InvalidInput("with_routes is for a mixture of experts: this model is dense")
