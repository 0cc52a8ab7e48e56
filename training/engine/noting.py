"""What is noted of a drawn token beside itself: likelier ones, and other distributions' odds."""

from collections.abc import Sequence

from torch import Tensor

from training.engine.calls import Sample
from training.engine.sampling import drawn_logprobs_of, logprobs_of, rank_tokens


def rank_samples(samples: Sequence[Sample], logits_RV: Tensor) -> None:
    """Note each one's likeliest next tokens, where its request asks for them."""
    counts = [sample.call.request.topk_sample_logprobs for sample in samples]
    asking = [index for index, count in enumerate(counts) if count]
    if not asking:
        return
    ids, logprobs = rank_tokens(logits_RV[asking], max(counts))
    for index, row_ids, row_logprobs in zip(asking, ids.tolist(), logprobs.tolist(), strict=True):
        count = counts[index]
        samples[index].topk.append((row_ids[:count], row_logprobs[:count]))


def note_both(
    samples: Sequence[Sample], raw_RV: Tensor, logits_RV: Tensor, tokens_R: Tensor
) -> None:
    """The model's own log-probabilities, and those of what was drawn from: after temperature,
    top-k and top-p.
    """
    asking = [index for index, each in enumerate(samples) if each.call.request.with_both_logprobs]
    if not asking:
        return
    tokens = tokens_R[asking]
    params = [samples[index].call.request.params for index in asking]
    raw = logprobs_of(raw_RV[asking], tokens).tolist()
    drawn = drawn_logprobs_of(logits_RV[asking], params, tokens).tolist()
    for index, raw_logprob, drawn_logprob in zip(asking, raw, drawn, strict=True):
        samples[index].raw_logprobs.append(raw_logprob)
        samples[index].drawn_logprobs.append(drawn_logprob)
