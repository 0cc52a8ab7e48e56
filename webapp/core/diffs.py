"""Two answers word by word: what only one of them has."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

PIECE = re.compile(r"\s+|\w+|[^\w\s]")
MAX_PIECES = 3000  # the comparison takes time with the square of this

SHORT = 40  # letters
LIKE = 0.4  # of a text: what the other has to share with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`is_changed`: the other text has not got it here."""

    text: str
    is_changed: bool


def diff_texts(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Each text in pieces. Texts too long to compare by word are one changed piece, or none."""
    before, after = PIECE.findall(first), PIECE.findall(second)
    if max(len(before), len(after)) > MAX_PIECES:
        is_changed = first != second
        return [Piece(text=first, is_changed=is_changed)], [
            Piece(text=second, is_changed=is_changed)
        ]
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return (
        join_pieces(mark_pieces(before, [(block.a, block.size) for block in blocks])),
        join_pieces(mark_pieces(after, [(block.b, block.size) for block in blocks])),
    )


def spare_unlike(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Texts with little in common are easier to read without marks all over."""
    shared = sum(len(piece.text) for piece in pieces if not piece.is_changed)
    text = "".join(piece.text for piece in pieces)
    is_clear = len(text) <= SHORT or shared >= LIKE * len(text)
    return pieces if is_clear else [Piece(text=text, is_changed=False)]


def mark_pieces(pieces: Sequence[str], same: Iterable[tuple[int, int]]) -> Iterable[Piece]:
    done = 0
    for start, size in same:
        if start > done:
            yield Piece(text="".join(pieces[done:start]), is_changed=True)
        if size:
            yield Piece(text="".join(pieces[start : start + size]), is_changed=False)
        done = start + size


def join_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """A space that both have, between words that they do not share, says nothing."""
    found = list(pieces)
    joined: list[Piece] = []
    for place, piece in enumerate(found):
        is_between = 0 < place < len(found) - 1 and piece.text.isspace()
        is_changed = piece.is_changed or is_between
        if joined and joined[-1].is_changed == is_changed:
            joined[-1] = Piece(text=joined[-1].text + piece.text, is_changed=is_changed)
        else:
            joined.append(Piece(text=piece.text, is_changed=is_changed))
    return joined
