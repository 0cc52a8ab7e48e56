"""Rows -> tokens with a loss mask that covers exactly what the assistant has to write."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer, Message, Spans
from training.errors import InvalidInput
from training.types import Datum

Overlong = Literal["truncate", "drop"]
Mask = NDArray[np.bool_]
Encoding = tuple[str, list[int], Mask, Spans]  # text, tokens, what is learned, characters of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as the model reads it. The keys are its row's."""

    number: int
    key: bytes
    prompt_key: bytes
    tokens: NDArray[np.int32]  # (N,): half the memory of what a datum holds for one step
    mask: Mask  # (N,): the tokens to learn to write

    @property
    def num_weighted(self) -> int:
        """Targets with a weight: the first token is never predicted."""
        return int(self.mask[1:].sum())


@dataclass(slots=True, kw_only=True)
class Encoded:
    """The examples of a dataset, and the numbers of the rows that were cut or left out."""

    examples: list[Example] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(example.tokens) for example in self.examples)


def encode_rows(
    rows: Iterable[Row], tokenizer: ChatTokenizer, *, max_length: int, overlong: Overlong
) -> Encoded:
    """A truncated row of which no assistant token is left is dropped too."""
    encoded = Encoded()
    for row in rows:
        example = encode_row(row, tokenizer)
        if len(example.tokens) > max_length:
            example = truncate(example, max_length)
            kept = overlong == "truncate" and example.num_weighted > 0
            (encoded.truncated if kept else encoded.dropped).append(row.number)
            if not kept:
                continue
        encoded.examples.append(example)
    return encoded


def encode_row(row: Row, tokenizer: ChatTokenizer) -> Example:
    """Plain text has no messages: all of it is learned."""
    encode = encode_masked if row.messages else encode_plain
    text, tokens, mask, _ = encode(row, tokenizer)
    if not mask[1:].any():
        whose = "the assistant's" if row.messages else "predicted from one before it"
        raise InvalidInput(f"row {row.number}: no token of {text[-80:]!r} is {whose}")
    return Example(
        number=row.number,
        key=row.key,
        prompt_key=row.prompt_key,
        tokens=np.asarray(tokens, dtype=np.int32),
        mask=mask,
    )


def truncate(example: Example, max_length: int) -> Example:
    return Example(
        number=example.number,
        key=example.key,
        prompt_key=example.prompt_key,
        tokens=example.tokens[:max_length],
        mask=example.mask[:max_length],
    )


def to_datum(example: Example) -> Datum:
    """Position i of the inputs speaks of token i + 1, so both ends lose one."""
    tokens = example.tokens.astype(np.int64)
    return Datum(
        tokens=tokens[:-1],
        inputs={
            "target_tokens": tokens[1:],
            "weights": example.mask[1:].astype(np.float32),
        },
    )


def encode_plain(row: Row, tokenizer: ChatTokenizer) -> Encoding:
    """Every token is learned but the first, which nothing predicts."""
    text = str(row.metadata.get("text", ""))
    tokens, spans = tokenizer.encode_spans(text)
    return text, tokens, np.arange(len(tokens)) > 0, spans


def encode_masked(row: Row, tokenizer: ChatTokenizer) -> Encoding:
    """The row's text is tokenized as a whole, as every other program would; spans map back."""
    text, turns = render_turns(row, tokenizer)
    tokens, spans = tokenizer.encode_spans(text)
    starts = np.asarray([start for start, _ in spans], dtype=np.int64)
    mask = np.zeros(len(tokens), dtype=np.bool_)
    for turn_start, turn_end in turns:
        # A token that begins before the turn was the header's; at sampling it is in the prompt.
        inside = (starts >= turn_start) & (starts < turn_end)
        mask |= inside & ~after_end(tokens, inside, tokenizer)
    return text, tokens, mask, spans


def after_end(tokens: Sequence[int], inside: Mask, tokenizer: ChatTokenizer) -> Mask:
    """What a template writes behind the end-of-turn token: a newline that nobody samples."""
    after = np.zeros(len(tokens), dtype=np.bool_)
    for place in np.flatnonzero(inside)[::-1]:
        if tokens[place] in tokenizer.special_ids or tokens[place] in tokenizer.stop_ids:
            after[place + 1 :] = True
            break
        if tokenizer.decode([tokens[place]]).strip():
            break  # content: this template has no end token, and its newline ends the turn
    return after


def render_turns(row: Row, tokenizer: ChatTokenizer) -> tuple[str, Spans]:
    """The whole text, and the characters from each assistant header's end to the turn's end."""
    messages, tools = row.messages, row.metadata.get("tools")
    tools = tools if isinstance(tools, list) else None
    texts: dict[int, str] = {}

    def render(count: int) -> str:
        if count not in texts:
            texts[count] = tokenizer.apply_template(messages[:count], tools=tools)
        return texts[count]

    turns = []
    try:
        whole = render(len(messages))
        for place in learned_turns(messages):
            header = tokenizer.apply_template(
                messages[:place], add_generation_prompt=True, tools=tools
            )
            turns.append((len(header), len(render(place + 1))))
            check_turn(place, header, render(place + 1), whole)
    except InvalidInput as error:
        raise InvalidInput(f"row {row.number}: {error}") from error
    return whole, turns


def learned_turns(messages: Sequence[Message]) -> list[int]:
    return [
        place
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]


def check_turn(place: int, header: str, turn: str, whole: str) -> None:
    if not turn.startswith(header):
        raise InvalidInput(
            f"the model's chat template begins message {place + 1} otherwise than the prompt it "
            "is asked with, so what the assistant writes cannot be told apart: change the template"
        )
    if not whole.startswith(turn):
        raise InvalidInput(
            f"the model's chat template writes message {place + 1} otherwise when more follows "
            "it: split the row into conversations that end with the assistant's turn, or change "
            "the template"
        )
