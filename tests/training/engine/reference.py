"""What transformers and peft alone make of a model, an adapter and some datums."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.engine.core import Engine
from training.types import Datum

# Where a mixture's experts stand in its files, and the projections that peft keeps in one tensor.
EXPERTS = {
    "qwen3_moe": ("mlp.experts", ("gate_proj", "up_proj"), ("down_proj",)),
    "mixtral": ("block_sparse_moe.experts", ("w1", "w3"), ("w2",)),
}


def load_peft(base: Path, adapter: Path) -> PeftModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        # peft warns of a tied head (that it works is what is tested), and reads a property that
        # transformers has renamed.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # It writes a pattern for experts that it has just fused, and warns that nothing matches it.
        warnings.simplefilter("ignore", RuntimeWarning)
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


def read_peft_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """By our names: of what peft has fused, each expert's and each projection's part."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in peft_parameters(model).items():
        assert parameter.grad is not None
        if ".mlp.experts." in name:
            found |= split_experts(model, name, parameter.grad)
        else:
            found[name] = parameter.grad
    return found


def split_experts(model: PeftModel, name: str, fused: torch.Tensor) -> dict[str, torch.Tensor]:
    place, inner, outer = EXPERTS[model.config.model_type]
    projections = inner if "base_layer" in name else outer
    prefix, side = name.partition("mlp.experts")[0] + place, name.split(".")[-2]
    config = model.config
    num_experts = getattr(config, "num_experts", None) or config.num_local_experts
    lora = model.peft_config["default"]
    assert isinstance(lora, LoraConfig)
    rank = lora.r
    width, rows = rank * len(projections), len(fused) // len(projections)
    found = {}
    for expert in range(num_experts):
        for at, projection in enumerate(projections):
            ranks = slice(at * rank, (at + 1) * rank)
            if side == "lora_A":
                matrix = fused.view(num_experts, width, -1)[expert, ranks]
            else:
                cube = fused.view(-1, width, num_experts)
                matrix = cube[at * rows : (at + 1) * rows, ranks, expert]
            found[f"{prefix}.{expert}.{projection}.{side}.weight"] = matrix
    return found
