"""Whether our pass and transformers agree about the model that was loaded.

Shapes: T tokens, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from training.engine.adapters import Adapters
from training.engine.attention import ATTENTION
from training.engine.packing import Item
from training.engine.passes import run_pass
from training.engine.probes import choose_probe_tokens, make_probe
from training.engine.tally import Tally
from training.errors import InvalidInput

# Largest difference of a log-probability that is rounding, by what the model computes in.
AGREEMENT = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.2}


def check_agreement(model: PreTrainedModel, adapters: Adapters) -> None:
    """Our pass leaves out what it does not know of a config: then refuse."""
    tokens = choose_probe_tokens(model.config.vocab_size, model.config.max_position_embeddings)
    request = make_probe(tokens)
    tally = Tally.empty(request)
    with torch.no_grad():
        run_pass(model, adapters, [Item(run="", index=0, datum=request.data[0])], {"": tally})
        ids = torch.tensor(tokens, device=adapters.device)
        logits_TV = compute_plain_logits(model, ids)[:-1].float()
    theirs = logits_TV.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1).cpu().numpy()
    if abs(tally.logprobs[0] - theirs).max() > AGREEMENT[adapters.head.weight.dtype]:
        raise InvalidInput(
            f"{type(model).__name__} computes in a way that is not known here: "
            "its log-probabilities differ from those of transformers"
        )


def compute_plain_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """With nothing of ours: transformers' own attention and masks."""
    model.set_attn_implementation("eager")
    try:
        logits_1TV = model(input_ids=ids[None], use_cache=False).logits
    finally:
        model.set_attn_implementation(ATTENTION)
    return logits_1TV[0]  # type: ignore[no-any-return]
