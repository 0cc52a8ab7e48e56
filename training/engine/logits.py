"""What a model makes of its head's output before it is a logit: a scale, a soft cap. And what a
learner makes of the logit: the temperature that its samples were drawn at.

Shapes: P positions, C of them, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig

from training.engine.sampling import SMALLEST_TEMPERATURE


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRule:
    """scale * output, or of that cap * tanh(it / cap) (Gemma 2, arXiv:2408.00118, section 2)."""

    scale: float = 1.0
    cap: float | None = None
    coldness: torch.Tensor | None = None  # (P, 1), one over the temperature; None: 1

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.cap is None and self.coldness is None

    def temper(self, temperatures_P: torch.Tensor) -> "LogitRule":
        cold_P = temperatures_P.clamp(min=SMALLEST_TEMPERATURE).reciprocal()
        return replace(self, coldness=cold_P[:, None])

    def narrow(self, positions: slice) -> "LogitRule":
        """Of some of the positions."""
        if self.coldness is None:
            return self
        return replace(self, coldness=self.coldness[positions])

    def apply_(self, outputs_CV: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.scale != 1.0:
            outputs_CV.mul_(self.scale)
        if self.cap is not None:
            outputs_CV.div_(self.cap).tanh_().mul_(self.cap)
        if self.coldness is not None:
            outputs_CV.mul_(self.coldness)
        return outputs_CV

    def find_gains(self, outputs_CV: torch.Tensor) -> torch.Tensor | float:
        """Slopes of the logits by the outputs. 1 - tanh^2 would round away what a high one has."""
        cold = 1.0 if self.coldness is None else self.coldness
        if self.cap is None:
            return self.scale * cold
        gains_CV = (outputs_CV * (self.scale / self.cap)).cosh_().pow_(-2)
        return gains_CV.mul_(self.scale * cold)


IDENTITY = LogitRule()


def read_rule(config: PretrainedConfig) -> LogitRule:
    return LogitRule(
        scale=1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
