"""Activation checkpointing: a decoder layer's activations are computed again in the backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from training.engine.adapters import Adapters
from training.engine.lora import Slice
from training.engine.routes import following


class RecomputedForward:
    """In the place of a layer's forward: the same numbers, and only its input is kept.

    The second time, rows belong to whom they did the first time, and go to the experts that they
    were sent to; there are no random numbers.
    """

    def __init__(self, forward: Callable[..., Any], adapters: Adapters) -> None:
        self.forward = forward
        self.adapters = adapters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        routing = self.adapters.routing
        return checkpoint(
            self._run,
            self.adapters.route.slices,
            None if routing is None else routing.wanted_NLK,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            **kwargs,
        )

    def _run(
        self,
        slices: Sequence[Slice],
        wanted_NLK: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with self.adapters.serve(slices), following(self.adapters.routing, wanted_NLK):
            return self.forward(*args, **kwargs)


def recompute_layers(model: PreTrainedModel, adapters: Adapters) -> None:
    """From now on, for all runs."""
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    for layer in decoder.layers:
        layer.forward = RecomputedForward(layer.forward, adapters)
