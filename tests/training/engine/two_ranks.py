"""What tests of two ranks share."""

from pathlib import Path

import torch

from training.engine.lead import Lead, LeadEngine

BUDGET = 64  # tokens of a rank's pass: few enough to make several


def load(lead: Lead, path: Path, dtype: torch.dtype = torch.float32) -> LeadEngine:
    return lead.load(path, dtype=dtype, token_budget=BUDGET)
