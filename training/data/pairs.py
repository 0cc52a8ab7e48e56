"""Preference rows -> pairs: a prompt with the answer that was chosen, and with the rejected one."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from training.data.examples import Example, Overlong, encode_row, truncate
from training.data.kinds import list_sides
from training.data.previews import join_side
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row as the model reads it, twice. The keys are its row's."""

    number: int
    key: bytes
    prompt_key: bytes
    chosen: Example
    rejected: Example

    @property
    def sides(self) -> tuple[Example, Example]:
        return self.chosen, self.rejected


@dataclass(slots=True, kw_only=True)
class EncodedPairs:
    """The pairs of a dataset, and the numbers of the rows that were cut or left out."""

    pairs: list[Pair] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


def encode_pairs(
    rows: Iterable[Row], tokenizer: ChatTokenizer, *, max_length: int, overlong: Overlong
) -> EncodedPairs:
    """A pair is left out where nothing is left of one of its answers, or of their difference."""
    encoded = EncodedPairs()
    for row in rows:
        pair = encode_pair(row, tokenizer)
        if max(len(side.tokens) for side in pair.sides) > max_length:
            pair = cut_pair(pair, max_length)
            kept = overlong == "truncate" and is_pair(pair)
            (encoded.truncated if kept else encoded.dropped).append(row.number)
            if not kept:
                continue
        encoded.pairs.append(pair)
    return encoded


def encode_pair(row: Row, tokenizer: ChatTokenizer) -> Pair:
    sides = list_sides(row.metadata)
    if sides is None:
        raise InvalidInput(f"row {row.number} is no preference pair: it lacks chosen or rejected")
    chosen, rejected = (encode_row(join_side(row, side), tokenizer) for side in sides)
    return Pair(
        number=row.number,
        key=row.key,
        prompt_key=row.prompt_key,
        chosen=chosen,
        rejected=rejected,
    )


def cut_pair(pair: Pair, max_length: int) -> Pair:
    chosen, rejected = (truncate(side, max_length) for side in pair.sides)
    return replace(pair, chosen=chosen, rejected=rejected)


def is_pair(pair: Pair) -> bool:
    has_answers = all(side.num_weighted for side in pair.sides)
    return has_answers and pair.chosen.tokens.tolist() != pair.rejected.tokens.tolist()
