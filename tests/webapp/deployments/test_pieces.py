"""Pieces of an answer: joined, cut, lost on their way, told twice."""

from typing import Any

from webapp.deployments.pieces import (
    Piece,
    Progress,
    join_pieces,
    read_pieces,
    read_sample,
    write_pieces,
)

WORDS = ("Hel", "lo", " ", "you")


def make_piece(place: int, count: int = 1) -> Piece:
    words = WORDS[place : place + count]
    return Piece(
        index=0,
        start=place,
        at=len("".join(WORDS[:place])),
        tokens=list(range(place, place + count)),
        logprobs=[-float(each) for each in range(place, place + count)],
        texts=list(words),
        text="".join(words),
    )


def make_result() -> dict[str, Any]:
    return {
        "tokens": [0, 1, 2, 3],
        "logprobs": [0.0, -1.0, -2.0, -3.0],
        "pieces": list(WORDS),
        "text": "Hello you",
    }


def read_text(progress: Progress) -> str:
    piece = progress.take()
    return piece.text if piece else ""


def test_neighbours_are_joined_to_what_came_as_one() -> None:
    assert join_pieces([make_piece(0), make_piece(1), make_piece(2, 2)]) == make_piece(0, 4)


def test_a_message_carries_the_pieces_of_many_answers() -> None:
    pieces = [("call-1", make_piece(0)), ("call-2", make_piece(1))]
    assert read_pieces(write_pieces(pieces).decode()) == pieces


def test_a_slow_reader_gets_what_waits_as_one_piece() -> None:
    progress = Progress(index=0)
    for place in range(4):
        progress.hear(make_piece(place))
    assert progress.take() == make_piece(0, 4)
    assert progress.take() is None


def test_what_was_told_twice_is_heard_once() -> None:
    progress = Progress(index=0)
    for piece in (make_piece(0, 2), make_piece(0), make_piece(1, 2), make_piece(0, 3)):
        progress.hear(piece)
    assert progress.take() == make_piece(0, 3)


def test_after_a_lost_message_the_rest_comes_with_the_result() -> None:
    progress = Progress(index=0)
    progress.hear(make_piece(0))
    progress.hear(make_piece(2))
    assert progress.take() == make_piece(0)
    progress.complete(read_sample(0, make_result()))
    rest = progress.take()
    assert rest is not None
    assert (rest.tokens, rest.text, rest.start) == ([1, 2, 3], "lo you", 1)


def test_a_reader_who_heard_nothing_gets_the_whole_result() -> None:
    progress = Progress(index=0)
    progress.complete(read_sample(0, make_result()))
    assert progress.take() == make_piece(0, 4)


def test_text_that_was_told_and_is_not_in_the_result_is_not_followed_by_another() -> None:
    progress = Progress(index=0)
    progress.hear(make_piece(0, 2))
    progress.complete(read_sample(0, make_result() | {"text": "Howdy, you"}))
    piece = progress.take()
    assert piece is not None
    assert (piece.text, piece.tokens) == ("Hello", [0, 1, 2, 3])
