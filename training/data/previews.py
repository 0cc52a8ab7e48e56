"""Rows as a base model's tokens, with what is learned of them, for each kind of row."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from training.data.examples import Encoding, encode_masked, encode_plain
from training.data.kinds import list_sides
from training.data.messages import Messages
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer, Spans
from training.errors import InvalidInput


def preview(
    rows: Iterable[Row],
    tokenizer: ChatTokenizer,
    *,
    limit: int = 20,
    max_length: int | None = None,
    kind: str = "conversation",
) -> list[dict[str, Any]]:
    """JSON-able: each row's tokens with text, id and weight; the texts join to the whole.

    Both answers of a preference are entries of their own, `part` chosen and rejected.
    """
    return [
        entry
        for row in islice(rows, limit)
        for entry in preview_parts(row, tokenizer, max_length, kind)
    ]


def preview_parts(
    row: Row, tokenizer: ChatTokenizer, max_length: int | None, kind: str
) -> list[dict[str, Any]]:
    if kind == "text":
        return [show(row, lambda: encode_plain(row, tokenizer), max_length)]
    if kind == "prompt":
        target = row.metadata.get("target")
        entry = show(row, lambda: encode_prompt(row, tokenizer), max_length)
        return [entry | {"target": target if isinstance(target, str) else None}]
    sides = list_sides(row.metadata) if kind == "preference" else None
    if sides is None:
        return [preview_row(row, tokenizer, max_length)]
    return [
        preview_row(join_side(row, side), tokenizer, max_length) | {"part": part}
        for part, side in zip(("chosen", "rejected"), sides, strict=True)
    ]


def join_side(row: Row, side: Messages) -> Row:
    """The prompt with one answer to it, of which the answer alone is learned."""
    read_only = [{**message, "weight": 0} for message in row.messages]
    return replace(row, messages=[*read_only, *side])


def preview_row(row: Row, tokenizer: ChatTokenizer, max_length: int | None) -> dict[str, Any]:
    return show(row, lambda: encode_masked(row, tokenizer), max_length)


def encode_prompt(row: Row, tokenizer: ChatTokenizer) -> Encoding:
    """Nothing is learned of what is only asked."""
    tools = row.metadata.get("tools")
    text = tokenizer.apply_template(
        row.messages,
        add_generation_prompt=True,
        tools=tools if isinstance(tools, list) else None,
    )
    tokens, spans = tokenizer.encode_spans(text)
    return text, tokens, np.zeros(len(tokens), dtype=np.bool_), spans


def show(row: Row, encode: Callable[[], Encoding], max_length: int | None) -> dict[str, Any]:
    try:
        text, tokens, mask, spans = encode()
    except InvalidInput as error:
        return {"number": row.number, "error": str(error), "num_tokens": 0, "tokens": []}
    pieces = split_text(text, spans)
    shown = slice(0, max_length)
    return {
        "number": row.number,
        "error": "",
        "num_tokens": len(tokens),
        "num_weighted": int(mask[shown].sum()),
        "num_cut": len(tokens) - len(tokens[shown]),
        "tokens": [
            {"text": piece, "id": token, "weight": int(weight)}
            for piece, token, weight in zip(pieces, tokens, mask, strict=True)
        ][shown],
    }


def split_text(text: str, spans: Spans) -> list[str]:
    """One piece a token. A character of several tokens is the first one's; the others get ""."""
    pieces, done = [], 0
    for _, end in spans:
        pieces.append(text[done:end])
        done = max(done, end)
    if pieces:
        pieces[-1] += text[done:]
    return pieces


def count_tokens(row: Row, tokenizer: ChatTokenizer, kind: str) -> int:
    """As a run reads the row; of a preference, the longer of both sides."""
    if not row.messages:
        return len(tokenizer.encode(str(row.metadata["text"])))
    tools = row.metadata.get("tools")
    sides = (list_sides(row.metadata) if kind == "preference" else None) or ([],)
    return max(
        len(
            tokenizer.encode(
                tokenizer.apply_template(
                    [*row.messages, *side],
                    add_generation_prompt=kind == "prompt",
                    tools=tools if isinstance(tools, list) else None,
                )
            )
        )
        for side in sides
    )
