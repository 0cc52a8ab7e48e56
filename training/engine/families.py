"""Which model families the engine computes exactly; all others are refused when they are loaded.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from training.engine.adapters import Adapters
from training.engine.packing import Item
from training.engine.passes import Tally, run_pass
from training.engine.probes import choose_probe_tokens, make_probe
from training.errors import InvalidInput

# Largest difference of a log-probability that is rounding, by what the model computes in.
AGREEMENT = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.2}


def check_architecture(model: PreTrainedModel) -> None:
    """Packed rows are attended causally and in full, by dense layers; else it is silently wrong."""
    config = model.config.to_dict()
    kinds = set(config.get("layer_types") or [find_kind(config)])
    if kinds != {"full_attention"}:
        raise InvalidInput(
            f"{type(model).__name__} has layers with {', '.join(sorted(kinds))}: only full "
            "attention can be trained"
        )
    if config.get("num_experts") or config.get("num_local_experts"):
        raise InvalidInput(
            f"{type(model).__name__} is a mixture of experts: only dense models can be trained"
        )


def find_kind(config: Mapping[str, Any]) -> str:
    """Of all layers, where the config does not say it layer by layer."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    is_narrow = window is not None and window < config["max_position_embeddings"]
    return "sliding_attention" if is_narrow else "full_attention"


def check_agreement(model: PreTrainedModel, adapters: Adapters) -> None:
    """Our pass leaves out what it does not know (soft caps, scaled logits): then refuse."""
    tokens = choose_probe_tokens(model.config.vocab_size, model.config.max_position_embeddings)
    request = make_probe(tokens)
    tally = Tally.empty(request)
    with torch.no_grad():
        run_pass(model, adapters, [Item(run="", index=0, datum=request.data[0])], {"": tally})
        ids = torch.tensor(tokens, device=adapters.device)
        logits_TV = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    theirs = logits_TV.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1).cpu().numpy()
    if abs(tally.logprobs[0] - theirs).max() > AGREEMENT[adapters.head.weight.dtype]:
        raise InvalidInput(
            f"{type(model).__name__} computes its logits in a way that is not known here: "
            "only dense Llama-like and Qwen-like models can be trained"
        )
