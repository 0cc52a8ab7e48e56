"""What tests of two ranks share."""

from pathlib import Path

import torch

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.lead import Lead, LeadEngine
from training.types import AdamParams, ForwardBackward

BUDGET = 64  # tokens of a rank's pass: few enough to make several


def load(lead: Lead, path: Path, dtype: torch.dtype = torch.float32) -> LeadEngine:
    return lead.load(path, dtype=dtype, token_budget=BUDGET)


def begin_alike(single: Engine, double: LeadEngine, folder: Path) -> None:
    """Where B is not zero any more. Steps of their own would differ by more than rounding: Adam
    divides small gradients by their size."""
    for run in single.runs:
        single.forward_backward({run: ForwardBackward(data=make_data(30, 9, seed=5))})
        single.optim_step(run, AdamParams(learning_rate=1e-2, grad_clip_norm=1.0))
        single.save_weights(run, folder / run, optimizer=True)
        double.load_weights(run, folder / run, optimizer=True)
