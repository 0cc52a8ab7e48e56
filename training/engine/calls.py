"""A sampling request on its way: queued, its prompt being read, its samples running, finished."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.engine.kvcache import Row
from training.engine.prompt_scores import PromptScores
from training.engine.route_log import RouteLog
from training.engine.sampling import StopRule, TextWatch
from training.errors import InvalidInput
from training.types import (
    IntArray,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    StopReason,
    TokenLogprobs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """What a listener hears as it happens; `stop_reason` comes with a sequence's last token."""

    index: int
    token: int
    logprob: float
    stop_reason: StopReason | None
    ranked: Sequence[tuple[int, float]] = ()  # the likeliest in its place, where they are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One request's end: what it asked for, or why that cannot be had."""

    ticket: int
    result: SampleOutput | InvalidInput


Listener = Callable[[NewToken], None]


@dataclass(slots=True, eq=False)
class LoadedAdapter:
    """Weights stay until the last sequence that uses them has left, whatever its name says now."""

    key: str
    users: int = 0
    is_retired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """The first `length` positions of another sequence's row, once they are there."""

    row: Row
    length: int
    log: RouteLog


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One request on its way: first its prompt is read, then its samples run on their own."""

    ticket: int
    request: SampleRequest
    adapter: LoadedAdapter | None
    stop: StopRule
    max_tokens: int
    listener: Listener | None
    waiting: list[int]  # indices of samples that have not begun
    scores: PromptScores
    row: Row | None = None  # while the prompt is being read
    loan: Loan | None = None  # what it waits for before it reads on
    num_cached: int = 0  # tokens of the prompt that were copied when it was first read
    samples: dict[int, SampledSequence] = field(default_factory=dict)
    log: RouteLog = field(default_factory=RouteLog)  # of the prompt

    @property
    def cost(self) -> int:
        """Positions of cache that one sample may come to need."""
        return len(self.request.prompt) + self.max_tokens

    @property
    def has_begun(self) -> bool:
        """False: no sample has; where not all have room, the prompt is read again for others."""
        return len(self.waiting) < self.request.num_samples

    @property
    def num_lendable(self) -> int:
        """Positions whose hidden states nobody asks for; those of the last one always are."""
        last, wanted = len(self.request.prompt) - 1, self.scores.first_wanted
        return last if wanted is None else min(last, wanted)

    @property
    def output(self) -> SampleOutput:
        request, scores = self.request, self.scores
        routes = self.log.read(0, len(request.prompt) - 1) if request.with_routes else None
        return SampleOutput(
            sequences=[self.samples[index] for index in sorted(self.samples)],
            prompt_logprobs=scores.logprobs if request.prompt_logprobs else None,
            topk_prompt_logprobs=scores.topk if request.topk_prompt_logprobs else None,
            target_prompt_logprobs=scores.targets.logprobs if scores.targets else None,
            prompt_alt_tokens=scores.alt if request.prompt_alt_tokens_k else None,
            prompt_routes=routes,
            prompt_cache_hit_tokens=self.num_cached,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Sample:
    """One live sequence; the last of its tokens is not in the cache yet."""

    call: Call
    index: int
    row: Row
    draws: random.Random
    watch: TextWatch | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[list[int], list[float]]] = field(default_factory=list)
    log: RouteLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = RouteLog(len(self.call.request.prompt))

    def tell(self, reason: StopReason | None) -> None:
        """The listener hears of the last token."""
        if self.call.listener is None:
            return
        ranked = tuple(zip(*self.topk[-1], strict=True)) if self.topk else ()
        self.call.listener(
            NewToken(
                index=self.index,
                token=self.tokens[-1],
                logprob=self.logprobs[-1],
                stop_reason=reason,
                ranked=ranked,
            )
        )

    def make_sequence(self, reason: StopReason) -> SampledSequence:
        return SampledSequence(
            tokens=self.tokens,
            logprobs=self.logprobs,
            raw_logprobs=self.raw_logprobs or None,
            drawn_logprobs=self.drawn_logprobs or None,
            stop_reason=reason,
            topk_logprobs=self._make_table() if self.topk else None,
            routes=self._join_routes() if self.call.request.with_routes else None,
        )

    def _join_routes(self) -> IntArray:
        """The first token was drawn from the prompt's last position."""
        stop = len(self.call.request.prompt)
        return np.concatenate([self.call.log.read(stop - 1, stop), *self.log.pieces])

    def _make_table(self) -> TokenLogprobs:
        table = TokenLogprobs.make_empty(len(self.topk), self.call.request.topk_sample_logprobs)
        for row, (ids, logprobs) in enumerate(self.topk):
            table.token_ids[row, : len(ids)] = ids
            table.logprobs[row, : len(ids)] = logprobs
        return table

    def find_stop_reason(self) -> StopReason | None:
        """Why the sample ends with its last token, None where it goes on."""
        token = self.tokens[-1]
        if token in self.call.stop.token_ids:
            return "stop"
        if self.watch is not None and self.watch.is_stopped_by(token):
            return "stop"
        return "length" if len(self.tokens) == self.call.max_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of the packed row: `owner`'s next tokens."""

    owner: Call | Sample
    row: Row
    tokens: Sequence[int]

    @property
    def begin(self) -> int:
        """The position of its first token, until the step has been made."""
        return self.row.length

    @property
    def stop(self) -> int:
        return self.row.length + len(self.tokens)

    @property
    def log(self) -> RouteLog | None:
        return self.owner.log if self.call.request.with_routes else None

    @property
    def call(self) -> Call:
        return self.owner if isinstance(self.owner, Call) else self.owner.call

    @property
    def adapter_key(self) -> str:
        adapter = self.call.adapter
        return adapter.key if adapter else ""
