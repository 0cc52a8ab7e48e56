"""From logits to tokens: temperature, top-k, top-p, stop rules. R rows, V vocabulary."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedModel

from training.types import SamplingParams

BLOCK = 256
SMALLEST_TEMPERATURE = 1e-30  # as a float32 that can be divided by


def seed_draws(seed: int | None, stream: int | str) -> random.Random:
    """Each stream of a seeded request is its own: the same whatever else runs."""
    return random.Random() if seed is None else random.Random(f"{seed}/{stream}")


def temper(logits_RV: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Logits of the distribution that is drawn from. At temperature 0 it is the model's own."""
    if all(each in (0, 1) for each in temperatures):
        return logits_RV
    divisors = torch.tensor([each or 1.0 for each in temperatures], device=logits_RV.device)
    # The largest is 0 before it is divided: no temperature makes an infinity of it.
    shifted_RV = logits_RV - logits_RV.amax(1, keepdim=True)
    return shifted_RV.div_(divisors.clamp_(min=SMALLEST_TEMPERATURE)[:, None])


def logprobs_of(logits_RV: Tensor, tokens_R: Tensor) -> Tensor:
    """Before top-k and top-p."""
    chosen_R = logits_RV.gather(1, tokens_R[:, None])[:, 0]
    return chosen_R - logits_RV.logsumexp(1)


def drawn_logprobs_of(
    logits_RV: Tensor, params: Sequence[SamplingParams], tokens_R: Tensor
) -> Tensor:
    """After top-k and top-p, of tempered logits that nobody needs any more. Temperature 0 draws
    nothing: there they are the model's own.
    """
    logprobs_R = logprobs_of(logits_RV, tokens_R)
    probs_RV = _probabilities(logits_RV, params)
    chosen_R = probs_RV.gather(1, tokens_R[:, None])[:, 0]
    drawn_R = (chosen_R / probs_RV.sum(1)).log()
    is_cold = torch.tensor([each.temperature == 0 for each in params], device=logits_RV.device)
    return torch.where(is_cold, logprobs_R, drawn_R)


def rank_tokens(logits_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest of each row, likeliest first, with their log-probabilities."""
    best = logits_RV.topk(min(k, logits_RV.shape[1]), dim=1)
    return best.indices, best.values - logits_RV.logsumexp(1, keepdim=True)


def choose_tokens(
    logits_RV: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]
) -> Tensor:
    """One token a row of tempered logits; `draws` are uniform in [0, 1) and decide alone."""
    tokens_R = logits_RV.argmax(1)
    warm = [index for index, each in enumerate(params) if each.temperature > 0]
    if not warm:
        return tokens_R
    rows = torch.tensor(warm, device=logits_RV.device)
    probs_RV = _probabilities(logits_RV[rows], [params[index] for index in warm])
    tokens_R[rows] = pick(probs_RV, [[draws[index]] for index in warm])[:, 0]
    return tokens_R


def draw_many(logits_RV: Tensor, temperature: float, draws: Sequence[Sequence[float]]) -> Tensor:
    """(R, K): as many tokens of each row as it has draws."""
    if temperature == 0:
        return logits_RV.argmax(1)[:, None].expand(-1, len(draws[0]))
    probs_RV = temper(logits_RV, [temperature] * len(draws)).softmax(1)
    return pick(probs_RV, draws)


def pick(probs_RV: Tensor, draws: Sequence[Sequence[float]]) -> Tensor:
    """The tokens at which the sum of probabilities passes a draw: first its block, then itself.

    A running sum over 100,000 tokens a row takes longer than their whole attention.
    """
    draws_RK = torch.tensor(draws, dtype=torch.float64).to(probs_RV.device)
    blocks = torch.nn.functional.pad(probs_RV, (0, -probs_RV.shape[1] % BLOCK))
    blocks = blocks.view(len(probs_RV), -1, BLOCK)
    # float64: rounding must not decide which token a draw means.
    sums = blocks.sum(2, dtype=torch.float64).cumsum(1)
    targets_RK = draws_RK * sums[:, -1:]
    block_RK = _find_passed(sums, targets_RK)
    rows = torch.arange(len(sums), device=sums.device)[:, None]
    before_RK = torch.where(block_RK > 0, sums[rows, block_RK - 1], 0)
    inner = blocks[rows, block_RK].cumsum(2, dtype=torch.float64)
    inner_RK = _find_passed(inner, (targets_RK - before_RK)[..., None])[..., 0]
    return block_RK * BLOCK + inner_RK


def _find_passed(sums: Tensor, targets: Tensor) -> Tensor:
    """Where the last axis' running sums first lie above; never where nothing was added."""
    below = torch.nextafter(sums[..., -1:], sums.new_zeros(()))
    return torch.searchsorted(sums, torch.minimum(targets, below), right=True).clamp_(
        max=sums.shape[-1] - 1
    )


def _probabilities(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    for index, each in enumerate(params):
        if 0 < each.top_k < logits_RV.shape[1]:
            floor = logits_RV[index].topk(each.top_k).values[-1]
            logits_RV[index].masked_fill_(logits_RV[index] < floor, float("-inf"))
    probs_RV = logits_RV.softmax(1)
    for index, each in enumerate(params):
        if each.top_p < 1:
            _keep_nucleus(probs_RV[index], each.top_p)
    return probs_RV


def _keep_nucleus(probs_V: Tensor, top_p: float) -> None:
    """Zero all but the likeliest tokens that together reach `top_p`; one always stays."""
    ordered, order = probs_V.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    probs_V[order[before >= top_p]] = 0


def find_end_ids(model: PreTrainedModel) -> frozenset[int]:
    settings = model.generation_config
    found = settings.eos_token_id if settings else None
    found = model.config.eos_token_id if found is None else found
    return frozenset([found] if isinstance(found, int) else found or [])


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """A sequence ends with one of these tokens, or when its text holds one of these strings."""

    token_ids: frozenset[int]
    strings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, params: SamplingParams, end_ids: frozenset[int], also: frozenset[int] = frozenset()
    ) -> "StopRule":
        """The end tokens stop beside what `stop` lists: only an empty list turns them off."""
        if params.stop == ():
            return cls(token_ids=also)
        stop = params.stop or ()
        ids = frozenset(each for each in stop if isinstance(each, int))
        strings = tuple(each for each in stop if isinstance(each, str))
        return cls(token_ids=ids | end_ids | also, strings=strings)


class TextWatch:
    """Detokenises as tokens come and says when a stop string is complete."""

    def __init__(self, tokenizer: Tokenizer, strings: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.stream = DecodeStream(skip_special_tokens=False)
        self.strings = strings
        self.kept = max(len(each) for each in strings) - 1
        self.tail = ""

    def is_stopped_by(self, token: int) -> bool:
        text = self.tail + (self.stream.step(self.tokenizer, token) or "")
        self.tail = text[len(text) - self.kept :] if self.kept else ""
        return any(each in text for each in self.strings)
