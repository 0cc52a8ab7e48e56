"""Forward passes that only measure: bounded in size, a few submitted ahead of the first answer."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from training.model import Future, Model
from training.types import Datum, FloatArray, ForwardBackwardOutput

# The engine then projects only positions with a weight, and sends no other logprobs back.
FORWARD_CONFIG: Mapping[str, float | str] = {"logprobs": "weighted"}
PASS_TOKENS = 4096  # other runs wait for one pass at most
PASSES_AHEAD = 8  # the device has work, and the queue no flood


def read_logprobs(model: Model, data: Iterable[Datum]) -> Iterator[FloatArray]:
    """Of each datum's weighted targets, in their order; 0 elsewhere."""
    flight: deque[Future[ForwardBackwardOutput]] = deque()
    for group in group_by_tokens(data, max_tokens=PASS_TOKENS):
        flight.append(ask_logprobs(model, group))
        if len(flight) > PASSES_AHEAD:
            yield from flight.popleft().result().logprobs
    while flight:
        yield from flight.popleft().result().logprobs


def ask_logprobs(model: Model, data: Sequence[Datum]) -> Future[ForwardBackwardOutput]:
    return model.forward_backward(data, "cross_entropy", config=FORWARD_CONFIG, forward_only=True)


def group_by_tokens(data: Iterable[Datum], *, max_tokens: int) -> Iterator[list[Datum]]:
    group: list[Datum] = []
    num_tokens = 0
    for datum in data:
        length = len(datum.tokens) + 1  # with the token that is only predicted
        if group and num_tokens + length > max_tokens:
            yield group
            group, num_tokens = [], 0
        group.append(datum)
        num_tokens += length
    if group:
        yield group
