"""POST /inference/v1/completions: Fireworks' dialect, with token ids and two log-probabilities.

`logprob` is the model's own; `sampling_logprob` is that of what was drawn from, after temperature,
top-k and top-p. Where no distribution but the model's own was asked for they are the same number.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webapp.core.errors import UserError
from webapp.core.fields import LARGEST, Fields
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, Ranked, read_sample
from webapp.openai import parameters
from webapp.openai.completions import read_prompts
from webapp.openai.forms import Chunk, Result, describe_usage
from webapp.openai.metrics import describe_metrics

DEFAULT_TOKENS = 16
# Their clients fall back to what is inline when they are refused in these words.
STORED = ("routing_matrix_format", "top_sampling_logprobs", "top_sampling_format", "sampling_mask")
INLINE = "base64_inline"
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"suffix": ("",)}

Row = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class FireworksCompletions:
    """One request with one prompt."""

    id: str
    model: str
    payloads: Sequence[Mapping[str, Any]]
    num_samples: int
    has_logprobs: bool
    has_raw: bool
    has_metrics: bool
    has_tokens: bool  # False: max_tokens was 0, and the one token that was drawn is not told
    echo: int | None  # of the prompt's last tokens; None: nothing is repeated
    is_streamed: bool
    created: int = field(default_factory=lambda: int(time.time()))
    purpose: str = SamplingCall.Purpose.FIRETITAN

    @classmethod
    def read(cls, fields: Fields, number: str) -> "FireworksCompletions":
        refuse_stored(fields)
        parameters.refuse_unsupported(fields, UNSUPPORTED)
        parameters.refuse_format(fields)
        echo = read_echo(fields)
        max_tokens = fields.whole("max_tokens", DEFAULT_TOKENS)
        if max_tokens == 0 and echo is None:
            raise UserError("max_tokens is 0: send 1 or more, or echo.", field="max_tokens")
        is_streamed = fields.flag("stream", False)
        has_logprobs, num_top = read_logprobs(fields)
        num_samples = fields.whole("n", 1, least=1, most=parameters.MAX_SAMPLES)
        payload = read_prompt(fields) | {
            "num_samples": num_samples,
            "params": parameters.read_params(
                fields, max_tokens=max_tokens or 1, is_streamed=is_streamed
            ),
            **describe_asked(fields, has_logprobs, num_top, echo),
        }
        return cls(
            id=f"cmpl-{number}",
            model=fields.text("model"),
            payloads=[payload],
            num_samples=num_samples,
            has_logprobs=has_logprobs,
            has_raw=fields.flag("raw_output", False) or fields.flag("return_token_ids", False),
            has_metrics=fields.flag("perf_metrics_in_response", False),
            has_tokens=max_tokens > 0,
            echo=echo,
            is_streamed=is_streamed,
        )

    @property
    def is_told_late(self) -> bool:
        """What stands in both columns, or before the sample, is known with the whole answer."""
        payload = self.payloads[0]
        return self.echo is not None or payload.get("with_both_logprobs", False)

    def describe(self, results: Sequence[Result]) -> Mapping[str, Any]:
        (result,) = results
        choices = [self._describe_whole(*each, result) for each in enumerate(result.sequences)]
        return self._wrap(choices) | self._describe_end(result)

    def begin(self) -> Iterable[Chunk]:
        return ()

    def tell(self, place: int, piece: Piece) -> Iterable[Chunk]:  # noqa: ARG002 - one call
        if not self.is_told_late:
            rows = write_rows(piece.tokens, piece.texts, piece.logprobs, piece.logprobs)
            yield self._chunk(piece.index, piece.text, add_ranked(rows, piece.alternatives))

    def end(self, place: int, result: Result) -> Iterable[Chunk]:  # noqa: ARG002 - one call
        """The rows where they are late, then token ids and why it ended."""
        for index, sequence in enumerate(result.sequences):
            whole = self._describe_whole(index, sequence, result)
            if self.is_told_late:
                rows = (whole["logprobs"] or {}).get("content", [])
                yield self._chunk(index, whole["text"], rows)
            yield self._wrap([whole | {"text": "", "logprobs": None}]) | self._describe_end(result)

    def close(self, results: Sequence[Result]) -> Iterable[Chunk]:  # noqa: ARG002 - said before
        return ()

    def _wrap(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, index: int, text: str, rows: Sequence[Row]) -> Chunk:
        logprobs = {"content": rows} if self.has_logprobs else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        return self._wrap([choice])

    def _describe_end(self, result: Result) -> dict[str, Any]:
        metrics = {"perf_metrics": describe_metrics(result)} if self.has_metrics else {}
        return {"usage": describe_usage([result]), **metrics}

    def _describe_whole(
        self, index: int, sequence: Mapping[str, Any], result: Result
    ) -> dict[str, Any]:
        echoed = list_echoed(result, self.echo) if self.echo is not None else []
        told = list_sampled(index, sequence) if self.has_tokens else []
        text = sequence["text"] if self.has_tokens else ""
        choice: dict[str, Any] = {
            "index": index,
            "text": "".join(row["token"] for row in echoed) + text,
            "logprobs": {"content": [*echoed, *told]} if self.has_logprobs else None,
            "finish_reason": sequence["stop_reason"] if self.has_tokens else "length",
        }
        if self.has_raw:
            choice["raw_output"] = {
                "prompt_token_ids": result.ended.result["prompt"]["tokens"],
                "completion_token_ids": [row["token_id"] for row in (*echoed, *told)],
            }
        return choice


def refuse_stored(fields: Fields) -> None:
    for name in STORED:
        if fields.has(name) and fields.values[name] != INLINE:
            raise UserError(f"Extra inputs are not permitted, field: '{name}'", field=name)


def read_logprobs(fields: Fields) -> tuple[bool, int]:
    """Whether, and how many likely tokens at each place: a number says both."""
    given = fields.values.get("logprobs")
    if given is None or isinstance(given, bool):
        return bool(given), parameters.read_topk(fields, "top_logprobs")
    counts = (parameters.read_topk(fields, name) for name in ("logprobs", "top_logprobs"))
    return True, max(counts)


def read_echo(fields: Fields) -> int | None:
    """How many of the prompt's last tokens are repeated; `echo` alone means all of them."""
    if fields.has("echo_last"):
        return fields.whole("echo_last")
    return LARGEST if fields.flag("echo", False) else None


def read_prompt(fields: Fields) -> dict[str, Any]:
    prompts = read_prompts(fields)
    if len(prompts) > 1:
        raise UserError("prompt is one text, or the token ids of one.", field="prompt")
    return prompts[0]


def describe_asked(
    fields: Fields, has_logprobs: bool, num_top: int, echo: int | None
) -> dict[str, Any]:
    """The prompt's token ids are always told: who sends text learns them so."""
    asked: dict[str, Any] = {"echo": True}
    if has_logprobs and not is_neutral(fields):
        asked["with_both_logprobs"] = True
    if has_logprobs and num_top:
        asked["topk_sample_logprobs"] = num_top
    if has_logprobs and echo:
        asked |= {"prompt_logprobs": True, "topk_prompt_logprobs": num_top}
    if fields.flag("include_routing_matrix", False):
        asked["with_routes"] = True
    return asked


def is_neutral(fields: Fields) -> bool:
    """Nothing but the model's own distribution is drawn from."""
    is_whole = fields.number("top_p", 1.0) == 1 and fields.whole("top_k", 0, least=-1) < 1
    return fields.number("temperature", 1.0) == 1 and is_whole


def list_echoed(result: Result, count: int) -> list[Row]:
    """The prompt's first token has no log-probability: clients drop its row, if it is a number."""
    answer = result.ended.result
    prompt = answer["prompt"]
    logprobs = list(answer.get("prompt_logprobs") or [None] * len(prompt["tokens"]))
    logprobs[:1] = [0.0]
    rows = write_rows(prompt["tokens"], prompt["pieces"], logprobs, [None] * len(prompt["tokens"]))
    ranked = list(prompt["alternatives"] or [])
    ranked[:1] = [[[prompt["tokens"][0], prompt["pieces"][0], 0.0]]] if ranked else []
    add_ranked(rows, ranked)
    add_routes(rows, ["", *(prompt.get("routes") or ())])
    return rows[max(0, len(rows) - count) :]


def list_sampled(index: int, sequence: Mapping[str, Any]) -> list[Row]:
    piece = read_sample(index, sequence)
    raw = sequence.get("raw_logprobs") or piece.logprobs
    drawn = sequence.get("drawn_logprobs") or piece.logprobs
    rows = write_rows(piece.tokens, piece.texts, raw, drawn)
    add_ranked(rows, piece.alternatives)
    add_routes(rows, sequence.get("routes") or ())
    return rows


def write_rows(
    tokens: Sequence[int],
    texts: Sequence[str],
    raw: Sequence[float | None],
    drawn: Sequence[float | None],
) -> list[Row]:
    return [
        {"token": text, "token_id": token, "logprob": own, "sampling_logprob": sampled}
        for token, text, own, sampled in zip(tokens, texts, raw, drawn, strict=True)
    ]


def add_ranked(rows: list[Row], alternatives: Sequence[Ranked]) -> list[Row]:
    for row, ranked in zip(rows, alternatives, strict=False):
        row["top_logprobs"] = [
            {"token": text, "token_id": token, "logprob": logprob}
            for token, text, logprob in ranked
        ]
    return rows


def add_routes(rows: list[Row], routes: Sequence[str]) -> None:
    """Each row has those of the position that its token was drawn from."""
    for row, route in zip(rows, routes if len(routes) == len(rows) else (), strict=False):
        row["routing_matrix"] = route
