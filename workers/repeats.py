"""What a client's own evaluation says: forward passes over the same data, again and again.

A loop that measures its held-out loss does so by `forward`, and keeps the number to itself. Where
the same data comes by at another step, what it cost then and now is a curve of the run.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from training.types import ForwardBackward, ForwardBackwardOutput

FORWARD_LOSS_KEY = "forward_loss"
MOST_SEEN = 256  # sets of one run; a restart forgets them


@dataclass(slots=True)
class Passes:
    """Forward passes since the last optimizer step, and sets that were there before."""

    digest: str = ""
    loss: float = 0.0
    weight: float = 0.0
    seen: dict[str, None] = field(default_factory=dict)

    def count(self, request: ForwardBackward, output: ForwardBackwardOutput) -> None:
        if request.loss_fn != "cross_entropy" or request.asks_vectors:
            return
        whole = hashlib.blake2b(self.digest.encode(), digest_size=16)
        for datum in request.data:
            whole.update(np.ascontiguousarray(datum.tokens).tobytes())
        self.digest = whole.hexdigest()
        self.loss += output.metrics["loss:sum"]
        self.weight += max(output.metrics.get("weights:sum", 0.0), 0.0)

    def take(self) -> Mapping[str, float]:
        """At an optimizer step. Empty: nothing was measured, or this set was never seen before."""
        digest, loss, weight = self.digest, self.loss, self.weight
        self.digest, self.loss, self.weight = "", 0.0, 0.0
        if not digest or weight <= 0:
            return {}
        is_known = digest in self.seen
        self.seen[digest] = None
        if len(self.seen) > MOST_SEEN:
            del self.seen[next(iter(self.seen))]
        return {FORWARD_LOSS_KEY: loss / weight} if is_known else {}
