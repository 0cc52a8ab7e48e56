"""What a model makes of its head's output before it is a logit: a scale, a soft cap.

Shapes: C positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRule:
    """scale * output, or of that cap * tanh(it / cap) (Gemma 2, arXiv:2408.00118, section 2)."""

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.cap is None

    def apply_(self, outputs_CV: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.scale != 1.0:
            outputs_CV.mul_(self.scale)
        if self.cap is not None:
            outputs_CV.div_(self.cap).tanh_().mul_(self.cap)
        return outputs_CV

    def find_gains(self, outputs_CV: torch.Tensor) -> torch.Tensor | float:
        """Slopes of the logits by the outputs. 1 - tanh^2 would round away what a high one has."""
        if self.cap is None:
            return self.scale
        return (outputs_CV * (self.scale / self.cap)).cosh_().pow_(-2).mul_(self.scale)


IDENTITY = LogitRule()


def read_rule(config: PretrainedConfig) -> LogitRule:
    return LogitRule(
        scale=1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
