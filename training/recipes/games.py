"""Small games for two, with rules that are checked: who may do what, and who has won."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import regex  # type: ignore[import-untyped]

from training.data.batches import draw

WIN, DRAW, LOSS = 1.0, 0.0, -1.0
NUMBER = regex.compile(r"\s*(\d{1,3})\W*")
LINES = (
    (0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6),
)  # fmt: skip


class Game(Protocol):
    """A position is a text: what a game goes on from, and nothing else counts."""

    def begin(self, key: bytes, *, seed: int) -> str:
        """A position to begin with, drawn by its key."""
        ...

    def ask(self, position: str) -> str:
        """What the player whose turn it is reads."""
        ...

    def list_moves(self, position: str) -> Sequence[int]:
        """Those that the rules allow; the game is not over."""
        ...

    def move(self, position: str, move: int) -> str: ...

    def judge(self, position: str) -> float | None:
        """What it is worth to whoever has just moved. None: the game goes on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Nim:
    """A heap of stones; each takes 1 to 3 of them, and who takes the last one wins."""

    most: int = 9  # stones of a heap to begin with
    least: int = 4

    def begin(self, key: bytes, *, seed: int) -> str:
        spread = self.most - self.least + 1
        return str(self.least + draw(key, seed=seed, purpose="nim") % spread)

    def ask(self, position: str) -> str:
        return f"Nim, last one wins. What is taken of {position}? 1, 2 or 3"

    def list_moves(self, position: str) -> Sequence[int]:
        return range(1, min(3, int(position)) + 1)

    def move(self, position: str, move: int) -> str:
        return str(int(position) - move)

    def judge(self, position: str) -> float | None:
        return WIN if position == "0" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TicTacToe:
    """Three in a row on nine fields, numbered from 1. A position is the fields, X first to move."""

    def begin(self, key: bytes, *, seed: int) -> str:  # noqa: ARG002 - it always begins the same
        return "." * 9

    def ask(self, position: str) -> str:
        rows = " ".join(position[start : start + 3] for start in (0, 3, 6))
        return f"Tic-tac-toe: {rows}. You are {find_mover(position)}. Which field, 1 to 9?"

    def list_moves(self, position: str) -> Sequence[int]:
        return [place + 1 for place, mark in enumerate(position) if mark == "."]

    def move(self, position: str, move: int) -> str:
        return position[: move - 1] + find_mover(position) + position[move:]

    def judge(self, position: str) -> float | None:
        if any(is_line(position, line) for line in LINES):
            return WIN
        return None if "." in position else DRAW


def find_mover(position: str) -> str:
    return "X" if position.count("X") == position.count("O") else "O"


def is_line(position: str, line: tuple[int, ...]) -> bool:
    marks = {position[place] for place in line}
    return len(marks) == 1 and marks != {"."}


GAMES: Mapping[str, Game] = {"nim": Nim(), "tic_tac_toe": TicTacToe()}


def read_move(game: Game, position: str, text: str) -> int | None:
    """The number that an answer begins with. None: it is no move that the rules allow."""
    found = NUMBER.match(text)
    move = int(found[1]) if found else 0
    return move if move in game.list_moves(position) else None


def choose_random(game: Game, position: str, key: bytes, *, seed: int) -> int:
    moves = game.list_moves(position)
    return moves[draw(key, seed=seed, purpose="opponent") % len(moves)]


def choose_best(game: Game, position: str, values: dict[str, float]) -> int:
    """The first of the best moves. `values` keeps what has been found out."""
    moves = game.list_moves(position)
    return max(moves, key=lambda move: value_after(game, game.move(position, move), values))


def value_after(game: Game, position: str, values: dict[str, float]) -> float:
    """What a position is worth to whoever has just moved, where both go on without a mistake."""
    if position not in values:
        judged = game.judge(position)
        if judged is None:
            answers = (game.move(position, move) for move in game.list_moves(position))
            judged = -max(value_after(game, answer, values) for answer in answers)
        values[position] = judged
    return values[position]
