"""Fixed tokens that every model of a size is asked about, to compare what two computations say."""

from collections.abc import Sequence

import numpy as np

from training.types import Datum, ForwardBackward

PROBE_TOKENS = 24


def choose_probe_tokens(vocab_size: int, context: int) -> tuple[int, ...]:
    """Spread over the vocabulary, the same for every model of that size."""
    return tuple((index + 1) * 7919 % vocab_size for index in range(min(PROBE_TOKENS, context)))


def make_probe(tokens: Sequence[int]) -> ForwardBackward:
    ids = np.array(tokens, np.int64)
    datum = Datum(tokens=ids[:-1], inputs={"target_tokens": ids[1:]})
    return ForwardBackward(data=[datum], forward_only=True)
