"""From logits to tokens: temperature, top-k, top-p, stop rules. R rows, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedModel

from training.errors import InvalidInput
from training.types import SamplingParams

BLOCK = 256


def check_params(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.max_tokens < 1:
        raise InvalidInput(f"max_tokens must be at least 1, not {params.max_tokens}")
    if not 0 <= params.temperature < float("inf"):
        raise InvalidInput(f"temperature must be 0 or more, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise InvalidInput(f"top_p must be above 0 and at most 1, not {params.top_p}")
    if params.top_k < -1:
        raise InvalidInput(f"top_k must be -1 (off) or more, not {params.top_k}")


def logprobs_of(logits_RV: Tensor, tokens_R: Tensor) -> Tensor:
    """What the model itself gives the tokens: before temperature and top-k/p."""
    chosen_R = logits_RV.gather(1, tokens_R[:, None])[:, 0]
    return chosen_R - logits_RV.logsumexp(1)


def choose_tokens(
    logits_RV: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]
) -> Tensor:
    """One token a row; `draws` are uniform in [0, 1), one a row, and decide alone."""
    tokens_R = logits_RV.argmax(1)
    warm = [index for index, each in enumerate(params) if each.temperature > 0]
    if not warm:
        return tokens_R
    rows = torch.tensor(warm, device=logits_RV.device)
    chosen = [params[index] for index in warm]
    probs_RV = _probabilities(logits_RV[rows], chosen)
    draws_R = torch.tensor([draws[index] for index in warm], dtype=torch.float64).to(rows.device)
    tokens_R[rows] = pick(probs_RV, draws_R)
    return tokens_R


def pick(probs_RV: Tensor, draws_R: Tensor) -> Tensor:
    """The token at which the sum of probabilities passes the draw: first its block, then itself.

    A running sum over 100,000 tokens a row takes longer than their whole attention.
    """
    blocks = torch.nn.functional.pad(probs_RV, (0, -probs_RV.shape[1] % BLOCK))
    blocks = blocks.view(len(probs_RV), -1, BLOCK)
    # float64: rounding must not decide which token a draw means.
    sums = blocks.sum(2, dtype=torch.float64).cumsum(1)
    block_R = _find_passed(sums, draws_R * sums[:, -1])
    rows_R = torch.arange(len(block_R), device=block_R.device)
    before_R = torch.where(block_R > 0, sums[rows_R, block_R - 1], 0)
    inner = blocks[rows_R, block_R].cumsum(1, dtype=torch.float64)
    inner_R = _find_passed(inner, draws_R * sums[:, -1] - before_R)
    return block_R * BLOCK + inner_R


def _find_passed(sums: Tensor, targets_R: Tensor) -> Tensor:
    """Where each row of running sums first lies above its target; never where nothing was added."""
    below_R = torch.nextafter(sums[:, -1], torch.zeros_like(targets_R))
    targets = torch.minimum(targets_R, below_R)[:, None]
    return torch.searchsorted(sums, targets, right=True)[:, 0].clamp_(max=sums.shape[1] - 1)


def _probabilities(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    temperatures = torch.tensor([each.temperature for each in params], device=logits_RV.device)
    scaled_RV = logits_RV / temperatures[:, None]
    for index, each in enumerate(params):
        if 0 < each.top_k < scaled_RV.shape[1]:
            floor = scaled_RV[index].topk(each.top_k).values[-1]
            scaled_RV[index].masked_fill_(scaled_RV[index] < floor, float("-inf"))
    probs_RV = scaled_RV.softmax(1)
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
        """No `stop` means the end tokens; a given one, even an empty one, replaces them."""
        if params.stop is None:
            return cls(token_ids=end_ids | also)
        strings = tuple(each for each in params.stop if isinstance(each, str))
        if "" in strings:
            raise InvalidInput("a stop string is empty: leave it out")
        ids = frozenset(each for each in params.stop if isinstance(each, int))
        return cls(token_ids=ids | also, strings=strings)


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
