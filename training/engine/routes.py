"""Which experts a mixture's layers choose: recorded as they do, or set to what was recorded.

Sampling and training round differently, so a router may choose other experts in each, and then the
gradient is of another function than the one that sampled. "Stabilizing MoE Reinforcement Learning
by Aligning Training and Inference Routers" (Ma et al. 2025, arXiv 2510.11370) calls the remedy
rollout routing replay, R3: the choice is the recorded one, the weights of the chosen experts are
still those of the trainer's router, with their gradients.

Shapes: N rows (tokens, flattened), L layers with experts, K experts chosen of E.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from training.errors import InvalidInput
from training.routing import FREE
from training.types import Datum, ForwardBackward, IntArray


class Routing:
    """The routers of a model, in the order of its layers; made once."""

    def __init__(self, routers: Sequence[nn.Module]) -> None:
        self.num_layers = len(routers)
        first = routers[0]
        assert isinstance(first.top_k, int)
        assert isinstance(first.num_experts, int)
        self.num_chosen, self.num_experts = first.top_k, first.num_experts
        # Mixtral's always makes the weights of the chosen sum to 1, Qwen's where it says so.
        self.is_normed = bool(getattr(first, "norm_topk_prob", True))
        self.wanted_NLK: torch.Tensor | None = None
        self.chosen: dict[int, torch.Tensor] | None = None
        for layer, router in enumerate(routers):
            router.register_forward_hook(partial(self._follow, layer))

    @contextmanager
    def record(self) -> Iterator["Record"]:
        """What has been chosen inside can be read afterwards."""
        record = Record()
        self.chosen = record.chosen
        try:
            yield record
        finally:
            self.chosen = None

    def _follow(
        self, layer: int, _: nn.Module, __: Any, output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """After a router: logits, weights and ids of the chosen."""
        logits_NE, weights_NK, ids_NK = output
        if self.wanted_NLK is not None:
            wanted_NK = self.wanted_NLK[:, layer]
            ids_NK = torch.where(wanted_NK == FREE, ids_NK, wanted_NK)
            chosen_NK = logits_NE.float().softmax(dim=-1).gather(1, ids_NK)
            if self.is_normed:
                chosen_NK = chosen_NK / chosen_NK.sum(dim=-1, keepdim=True)
            weights_NK = chosen_NK.to(weights_NK.dtype)
        if self.chosen is not None:
            self.chosen[layer] = ids_NK
        return logits_NE, weights_NK, ids_NK

    def check(self, datum: Datum, where: str) -> None:
        """InvalidInput where the datum's routes cannot be followed."""
        routes = datum.routes
        if routes is None:
            return
        expected = (len(datum.tokens), self.num_layers, self.num_chosen)
        if routes.shape != expected:
            raise InvalidInput(
                f"{where}: routes have the shape {routes.shape}, expected are {expected}: the "
                f"datum's tokens, the model's {self.num_layers} layers with experts, and the "
                f"{self.num_chosen} experts that each chooses"
            )
        if routes.dtype.kind not in "iu":
            raise InvalidInput(f"{where}: routes are {routes.dtype}: send integers")
        self._check_ids(routes, where)

    def _check_ids(self, routes: IntArray, where: str) -> None:
        sorted_NLK = np.sort(routes, axis=-1)
        is_free_NL = (routes == FREE).all(axis=-1)
        is_wrong_NL = (sorted_NLK[..., 0] < 0) | (sorted_NLK[..., -1] >= self.num_experts)
        is_wrong_NL |= (sorted_NLK[..., 1:] == sorted_NLK[..., :-1]).any(axis=-1)
        wrong = np.argwhere(is_wrong_NL & ~is_free_NL)
        if len(wrong):
            position, layer = wrong[0]
            raise InvalidInput(
                f"{where}: routes at position {position} name the experts "
                f"{routes[position, layer].tolist()} in layer {layer}: send {self.num_chosen} "
                f"different ones from 0 to {self.num_experts - 1}, or {FREE} for all of them, "
                "which leaves the choice to the layer"
            )


@contextmanager
def following(routing: Routing | None, wanted_NLK: torch.Tensor | None) -> Iterator[None]:
    """Inside, every layer chooses for row n what `wanted_NLK[n]` says. None: it is free."""
    if routing is None:
        yield
        return
    before, routing.wanted_NLK = routing.wanted_NLK, wanted_NLK
    try:
        yield
    finally:
        routing.wanted_NLK = before


class Record:
    """What was chosen in one pass."""

    def __init__(self) -> None:
        self.chosen: dict[int, torch.Tensor] = {}

    def read(self) -> IntArray:
        """(N, L, K)."""
        layers = [self.chosen[layer] for layer in sorted(self.chosen)]
        routes: IntArray = torch.stack(layers, dim=1).cpu().numpy()
        return routes


def check_routes(request: ForwardBackward, routing: Routing | None) -> None:
    """InvalidInput where a request has routes, or asks for them, that the model cannot have."""
    if routing is None and request.with_routes:
        raise InvalidInput("with_routes is for a mixture of experts: this model is dense")
    for index, datum in enumerate(request.data):
        if routing is not None:
            routing.check(datum, f"datum {index}")
        elif datum.routes is not None:
            raise InvalidInput(
                f"datum {index}: routes are for a mixture of experts: this model is dense"
            )
