"""What a step does with gradients besides its optimizer's arithmetic: their share, their norms."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from training.types import StepOptions

Measure = Callable[[torch.Tensor], torch.Tensor]
# The buckets of a detailed answer, by a word in the names of what belongs to them.
BUCKETS = (
    ("norm", "norm"),
    ("att", "attn"),
    ("embed_tokens", "embed"),
    ("lm_head", "unembed"),
    ("projection_head", "projection"),
)


@dataclass(slots=True, kw_only=True)
class Counts:
    """Of what was summed into a run's gradients since its last step: where the loss has a gradient
    that is not zero."""

    num_loss_tokens: int = 0
    num_sequences: int = 0

    def find_divisor(self, options: StepOptions) -> int:
        """1 where there was nothing to count: all gradients are zero then."""
        kind = options.grad_accumulation_normalization
        return 1 if kind == "none" else max(1, int(getattr(self, kind)))

    def describe(self, options: StepOptions) -> dict[str, float]:
        """What the gradients were divided by; nothing where they were not."""
        kind = options.grad_accumulation_normalization
        return {} if kind == "none" else {kind: float(getattr(self, kind))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What else is asked of a step than its optimizer's arithmetic. `num_trained`: numbers that the
    run learns, of which ranks may hold a part each. Ranks measure together."""

    options: StepOptions
    divisor: int  # known where gradients are collected
    num_trained: int
    measure: Measure

    def measure_buckets(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Norms of a model's parts, before anything is clipped."""
        if self.options.emit_grad_norm_metrics != "detailed":
            return {}
        squares: dict[str, float] = {}
        for name, piece in gradients.items():
            key = f"grad_norm/{find_bucket(name)}"
            squares[key] = squares.get(key, 0.0) + float(self.measure(piece.flatten())) ** 2
        return {key: math.sqrt(squares[key]) for key in sorted(squares)}

    def describe_norm(self, norm: float) -> dict[str, float]:
        """Beside the norm itself, which every step tells."""
        if self.options.emit_grad_norm_metrics == "off":
            return {}
        return {"grad_rms": norm / math.sqrt(max(1, self.num_trained))}


def find_bucket(name: str) -> str:
    """Of a weight's name: the rest of a model are its MLPs, experts among them."""
    return next((bucket for word, bucket in BUCKETS if word in name), "mlp")
