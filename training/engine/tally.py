"""What the passes have found out about a request so far, and the answer that comes of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from training.engine.packing import Item, Layout
from training.engine.traced import Meter, judge
from training.errors import InvalidInput
from training.requests import POLICY_METRICS
from training.types import Datum, FloatArray, ForwardBackward, ForwardBackwardOutput, IntArray
from training.vectors import PROJECTION

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the passes have found out about one request so far."""

    request: ForwardBackward
    logprobs: list[FloatArray]
    routes: dict[int, IntArray] = field(default_factory=dict)  # by index, where they are asked for
    vectors: dict[int, FloatArray] = field(default_factory=dict)  # by index, instead of logprobs
    loss: float = 0.0
    num_scored: int = 0
    num_loss_tokens: int = 0  # with a gradient that is not zero
    num_sequences: int = 0  # with any such token
    custom: dict[str, float] = field(default_factory=dict)  # metrics of a custom loss, summed
    policy: dict[str, float] = field(default_factory=dict)  # of a policy loss, summed over tokens
    meter: Meter = field(default_factory=Meter)
    error: InvalidInput | None = None  # why a custom loss has no numbers

    @classmethod
    def empty(cls, request: ForwardBackward) -> "Tally":
        return cls(request=request, logprobs=[make_blank(datum) for datum in request.data])

    def judge(self, item: Item) -> FloatArray:
        """One datum's custom loss; returns its slopes. After an error nothing counts any more."""
        logprobs, loss = self.logprobs[item.index], self.request.custom
        if self.error is not None or loss is None:
            return np.zeros_like(logprobs)
        try:
            judged = judge(
                loss, item.datum, logprobs, self.meter, with_slopes=not self.request.forward_only
            )
        except InvalidInput as error:
            self.error = InvalidInput(f"datum {item.index}: custom loss {loss.name}: {error}")
            return np.zeros_like(logprobs)
        self.loss += judged.loss
        for key, value in judged.metrics.items():
            self.custom[key] = self.custom.get(key, 0.0) + value
        return judged.slopes

    def finish(self) -> ForwardBackwardOutput:
        metrics = {
            "loss:sum": self.loss,
            "num_datums:sum": float(len(self.request.data)),
            "num_tokens:sum": float(self.request.num_tokens),
            "num_scored:sum": float(self.num_scored),
        }
        if self.request.loss_fn == "cross_entropy" and not self.request.asks_vectors:
            weights = [read_input(datum, "weights") for datum in self.request.data]
            metrics["weights:sum"] = float(sum(weight.sum(dtype=np.float64) for weight in weights))
            metrics["weights:min"] = float(min(weight.min(initial=0.0) for weight in weights))
        if num_tokens := self.policy.get("num_tokens"):
            means = {
                key: self.policy[key] / num_tokens for key in POLICY_METRICS if key in self.policy
            }
            metrics |= {f"{key}:mean": mean for key, mean in means.items() if math.isfinite(mean)}
        num_datums = len(self.request.data)
        for key, value in self.custom.items():
            metrics[key] = value / num_datums if key.endswith(":mean") else value
        return ForwardBackwardOutput(
            logprobs=self.logprobs,
            metrics=metrics,
            routes=list_all(self.routes) if self.request.with_routes else None,
            vectors=list_all(self.vectors) if self.request.asks_vectors else None,
            vector_name="projection" if self.request.output == PROJECTION else "embedding",
        )


def list_all(by_index: Mapping[int, T]) -> list[T]:
    return [by_index[index] for index in range(len(by_index))]


def make_blank(datum: Datum) -> FloatArray:
    targets = datum.inputs.get("target_tokens")
    return np.zeros(0 if targets is None else targets.shape, np.float32)


def read_input(datum: Datum, name: str) -> FloatArray:
    """Float32 of a loss input; weights that were not sent are ones."""
    if name not in datum.inputs:
        return np.ones(datum.inputs["target_tokens"].shape, np.float32)
    return datum.inputs[name].astype(np.float32, copy=False)


def make_rows(values: NDArray[Any]) -> NDArray[Any]:
    """(N, K) of what a datum brings: (N,) is one column."""
    return values.reshape(len(values), -1)


def count_slopes(
    layout: Layout, scored_P: IntArray, tallies: Mapping[str, Tally], grad_PK: torch.Tensor
) -> None:
    """Of each datum: how many of its positions the loss pulls at."""
    is_pulled_U = np.zeros(len(layout.places), np.bool_)
    is_pulled_U[scored_P] = (grad_PK != 0).any(dim=1).cpu().numpy()
    for part in layout.parts:
        start, tally = part.told.start, tallies[part.told.run]
        for item in part.items:
            num_pulled = int(is_pulled_U[start : start + item.length].sum())
            tally.num_loss_tokens += num_pulled
            tally.num_sequences += num_pulled > 0
            start += item.length
