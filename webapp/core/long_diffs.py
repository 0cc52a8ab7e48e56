"""Two texts of any length side by side: what both have, and what differs within the rest."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import chain, pairwise, takewhile
from time import monotonic

from webapp.core.diffs import Piece, join_pieces, mark_pieces

# A word carries the space after it: spaces of their own would all match each other.
WORD = re.compile(r"\w+[^\S\n]*|[^\w\s][^\S\n]*|\s+")
SECONDS = 2.0  # for one pair of texts
MOST_PAIRS = 4_000_000  # of equal pieces: one search looks at each, and cannot be interrupted

Lines = Sequence[Sequence[str]]


class TooLong(Exception):  # noqa: N818 - reads as the sentence it is
    """The comparison would take longer than somebody waits."""


class Matcher(SequenceMatcher[str]):
    """Gives up when the time is over."""

    def __init__(self, before: Sequence[str], after: Sequence[str], deadline: float) -> None:
        super().__init__(None, before, after, autojunk=False)
        self.deadline = deadline

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Match:
        if monotonic() > self.deadline:
            raise TooLong
        return super().find_longest_match(alo, ahi, blo, bhi)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Lines that stand beside each other. Equal ones are told once, in `first`."""

    first: Sequence[Piece]
    second: Sequence[Piece]
    is_same: bool
    num_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LongDiff:
    """`num_coarse`: stretches where all between two equal ends is marked, for lack of time."""

    stretches: Sequence[Stretch]
    num_coarse: int

    @property
    def is_same(self) -> bool:
        return all(stretch.is_same for stretch in self.stretches)


def split_words(text: str) -> list[str]:
    return WORD.findall(text)


def diff_long(before: Sequence[str], after: Sequence[str], *, seconds: float = SECONDS) -> LongDiff:
    """By line first, then by piece within what is not the same. The pieces of a text are its
    tokens or words.
    """
    deadline = monotonic() + seconds
    lines = cut_lines(before), cut_lines(after)
    stretches, num_coarse = [], 0
    for tag, *places in _list_blocks(*lines, deadline):
        first, second = lines[0][places[0] : places[1]], lines[1][places[2] : places[3]]
        stretch, is_coarse = _mark_stretch(first, second, tag == "equal", deadline)
        stretches.append(stretch)
        num_coarse += is_coarse
    return LongDiff(stretches=stretches, num_coarse=num_coarse)


def cut_lines(pieces: Sequence[str]) -> list[Sequence[str]]:
    """A line ends with the piece that has its break, whatever else is in that."""
    ends = [place + 1 for place, piece in enumerate(pieces) if "\n" in piece]
    bounds = [0, *ends] if ends and ends[-1] == len(pieces) else [0, *ends, len(pieces)]
    return [pieces[start:end] for start, end in pairwise(bounds) if end > start]


def _list_blocks(
    before: Lines, after: Lines, deadline: float
) -> Sequence[tuple[str, int, int, int, int]]:
    texts = ["".join(line) for line in before], ["".join(line) for line in after]
    try:
        return _match(*texts, deadline).get_opcodes()
    except TooLong:
        return [("replace", 0, len(before), 0, len(after))]


def _mark_stretch(
    before: Lines, after: Lines, is_same: bool, deadline: float
) -> tuple[Stretch, bool]:
    first, second = list(chain(*before)), list(chain(*after))
    num_lines = max(len(before), len(after))
    if is_same or not first or not second:
        both = [_join_whole(pieces, is_changed=not is_same) for pieces in (first, second)]
        return Stretch(first=both[0], second=both[1], is_same=is_same, num_lines=num_lines), False
    marked, is_coarse = _diff_pieces(first, second, deadline)
    return Stretch(first=marked[0], second=marked[1], is_same=False, num_lines=num_lines), is_coarse


def _diff_pieces(
    before: Sequence[str], after: Sequence[str], deadline: float
) -> tuple[Sequence[Sequence[Piece]], bool]:
    try:
        blocks = _match(before, after, deadline).get_matching_blocks()
    except TooLong:
        return _mark_middle(before, after), True
    starts = (
        [(block.a, block.size) for block in blocks],
        [(block.b, block.size) for block in blocks],
    )
    return [
        join_pieces(mark_pieces(pieces, same))
        for pieces, same in zip((before, after), starts, strict=True)
    ], False


def _mark_middle(before: Sequence[str], after: Sequence[str]) -> Sequence[Sequence[Piece]]:
    """Between what both begin with and what both end with."""
    head = _count_equal(zip(before, after, strict=False))
    rest = before[head:], after[head:]
    tail = _count_equal(zip(*map(reversed, rest), strict=False))
    return [
        join_pieces(mark_pieces(each, [(0, head), (len(each) - tail, tail)]))
        for each in (before, after)
    ]


def _count_equal(pairs: Iterable[tuple[str, str]]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _join_whole(pieces: Sequence[str], *, is_changed: bool) -> Sequence[Piece]:
    return [Piece(text="".join(pieces), is_changed=is_changed)] if pieces else []


def _match(before: Sequence[str], after: Sequence[str], deadline: float) -> Matcher:
    counts = Counter(after)
    if sum(number * counts[piece] for piece, number in Counter(before).items()) > MOST_PAIRS:
        raise TooLong
    return Matcher(before, after, deadline)
