"""Answers whose tokens are told as they come, and the whole that they make in the end."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime

from django.utils.timezone import now

from training.data.tokenizer import ChatTokenizer
from training.types import (
    NO_TOKEN,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    StopReason,
    TokenLogprobs,
)
from webapp.deployments.pieces import Piece
from workers.texts import GrowingText
from workers.vllm import SamplingServer, ServerLost
from workers.vllm_wire import StreamedToken, StreamedUsage, read_table

Tell = Callable[[Piece], None]


@dataclass(slots=True, kw_only=True)
class GrowingSample:
    """One sample on its way."""

    index: int
    text: GrowingText
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranked: list[list[tuple[int, float]]] = field(default_factory=list)
    stop_reason: StopReason | None = None

    def add(self, token: StreamedToken, tokenizer: ChatTokenizer) -> Piece:
        start, at = len(self.tokens), self.text.num_told
        self.tokens.append(token.token)
        logprobs = [] if token.logprob is None else [token.logprob]
        self.logprobs += logprobs
        self.ranked.append(list(token.ranked))
        self.stop_reason = token.stop_reason
        return Piece(
            index=self.index,
            start=start,
            at=at,
            tokens=[token.token],
            logprobs=logprobs,
            texts=[self.text.spell(token.token)],
            text=self.text.add(token.token),
            alternatives=[name_ranked(token.ranked, tokenizer)] if token.ranked else [],
        )

    def make_sequence(self, topk: int) -> SampledSequence:
        if self.stop_reason is None:
            raise ServerLost("the sampling server ended its stream before its answer had ended")
        return SampledSequence(
            tokens=self.tokens,
            logprobs=self.logprobs,
            stop_reason=self.stop_reason,
            topk_logprobs=read_table(self.ranked, topk) if topk else None,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Watched:
    """A call that somebody follows: its pieces are told, and when the first one came is noted."""

    tokenizer: ChatTokenizer
    tell: Tell
    marks: Sequence[str] = ()  # where the text ends for its readers
    is_cut: bool = True  # stop strings are no part of the text
    first_token_at: datetime | None = None

    async def sample(
        self, server: SamplingServer, model: str, request: SampleRequest
    ) -> SampleOutput:
        samples = [self._begin(index, request) for index in range(request.num_samples)]
        num_cached = 0
        async with aclosing(server.stream(model, request)) as news:
            async for each in news:
                if isinstance(each, StreamedUsage):
                    num_cached = each.num_cached_tokens
                else:
                    self.first_token_at = self.first_token_at or now()
                    self.tell(samples[each.index].add(each, self.tokenizer))
        return SampleOutput(
            sequences=[sample.make_sequence(request.topk_sample_logprobs) for sample in samples],
            prompt_cache_hit_tokens=num_cached,
        )

    def _begin(self, index: int, request: SampleRequest) -> GrowingSample:
        stops = list_stop_strings(request) if self.is_cut else ()
        text = GrowingText(self.tokenizer, stops=stops, marks=self.marks)
        return GrowingSample(index=index, text=text)


def can_stream(request: SampleRequest) -> bool:
    """Streams of vLLM's say nothing of the prompt; an answer that does comes whole."""
    return not (
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.target_prompt_logprobs
        or request.prompt_alt_tokens_k
        or request.with_routes
        or request.with_both_logprobs
    )


def list_stop_strings(request: SampleRequest) -> list[str]:
    return [each for each in request.params.stop or () if isinstance(each, str)]


def name_ranked(
    ranked: Sequence[tuple[int, float]], tokenizer: ChatTokenizer
) -> list[tuple[int, str, float]]:
    return [(token, tokenizer.decode([token]), logprob) for token, logprob in ranked]


def name_table(
    table: TokenLogprobs, tokenizer: ChatTokenizer
) -> list[list[tuple[int, str, float]]]:
    """Of each row its tokens with their texts; cells that hold none are left out."""
    rows = zip(table.token_ids.tolist(), table.logprobs.tolist(), strict=True)
    return [
        name_ranked(
            [pair for pair in zip(ids, logprobs, strict=True) if pair[1] != NO_TOKEN], tokenizer
        )
        for ids, logprobs in rows
    ]
