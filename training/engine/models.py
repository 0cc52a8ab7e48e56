"""Base models as the engine reads them from disk."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from training.architectures import read_architecture
from training.engine.attention import ATTENTION


def open_model(path: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Frozen, with our attention."""
    read_architecture(path)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
    )
    model.train(False).requires_grad_(False).to(device)
    return model
