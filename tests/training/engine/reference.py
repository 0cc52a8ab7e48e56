"""What transformers and peft alone make of a model, an adapter and some datums."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.engine.core import Engine
from training.types import Datum


def load_peft(base: Path, adapter: Path) -> PeftModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        # peft warns of a tied head (that it works is what is tested), and reads a property that
        # transformers has renamed.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def sum_loss(model: PeftModel, data: Sequence[Datum]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One sequence at a time, the whole vocabulary, no packing: nothing of ours."""
    logprobs = []
    total = torch.zeros(())
    for datum in data:
        logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        chosen = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        total = total - (chosen * torch.from_numpy(datum.inputs["weights"])).sum()
        logprobs.append(chosen.detach())
    return total, logprobs


def read_gradients(engine: Engine, run: str) -> dict[str, torch.Tensor]:
    adapter = engine.adapters.by_run[run]
    return adapter.view(adapter.gradients)


def peft_parameters(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
