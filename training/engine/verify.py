"""Whether what was written says of fixed tokens what the trainer said of them: it is loaded again.

A whole model is loaded by transformers alone, with nothing of ours; an adapter by what serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import Probe, SampleRequest, SamplingParams

ADAPTER = "exported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """In nats, over the probe's tokens."""

    max_difference: float
    mean_difference: float


def verify_model(folder: Path, probe: Probe, dtype: torch.dtype = torch.float32) -> Agreement:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    ids = torch.tensor(probe.tokens)
    with torch.no_grad():
        logits_TV = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    told = logits_TV.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    return compare(told.tolist(), probe)


def verify_adapter(
    base: Path, folder: Path, probe: Probe, dtype: torch.dtype = torch.float32
) -> Agreement:
    generator = Generator.load(base, dtype=dtype)
    generator.load_adapter(ADAPTER, folder)
    request = SampleRequest(
        prompt=probe.tokens, params=SamplingParams(max_tokens=1), prompt_logprobs=True
    )
    generator.submit(request, adapter=ADAPTER)
    while not (finished := generator.step()):
        pass
    output = finished[0].result
    if isinstance(output, InvalidInput):
        raise output
    told = [each for each in output.prompt_logprobs or () if each is not None]
    return compare(told, probe)


def compare(told: Sequence[float], probe: Probe) -> Agreement:
    pairs = zip(told, probe.logprobs, strict=True)
    differences = [abs(one - other) for one, other in pairs]
    return Agreement(
        max_difference=max(differences), mean_difference=sum(differences) / len(differences)
    )
