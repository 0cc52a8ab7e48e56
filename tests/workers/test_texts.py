"""The text of a growing sample is the whole one's, in parts that are never taken back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.tokenizer import ChatTokenizer
from workers.describing import split_pieces
from workers.texts import GrowingText, cut_at_stop

TOKENIZER = ChatTokenizer.load(Path(__file__).parents[1] / "assets" / "tiny-chatml-1m")
END = 2


def tell(tokens: list[int], **ends: tuple[str, ...]) -> list[str]:
    growing = GrowingText(TOKENIZER, **ends)
    return [growing.add(token) for token in tokens]


@given(st.text(max_size=40))
def test_the_parts_are_the_whole_text_and_hold_no_broken_character(text: str) -> None:
    text = text.replace("\0", "")
    parts = tell(TOKENIZER.encode(text))
    assert "".join(parts) == text
    if "�" not in text:
        assert "�" not in "".join(parts)


@given(st.lists(st.integers(0, 1023), max_size=30))
def test_whatever_tokens_come_the_parts_begin_the_whole_text(tokens: list[int]) -> None:
    assert TOKENIZER.decode(tokens, skip_special=True).startswith("".join(tell(tokens)))


def test_a_nul_reads_as_a_character_that_every_database_stores() -> None:
    tokens = TOKENIZER.encode("a\0b")
    growing = GrowingText(TOKENIZER)
    assert "".join(tell(tokens)) == TOKENIZER.decode(tokens) == "a\ufffdb"
    assert "".join(growing.spell(token) for token in tokens) == "a\ufffdb"
    assert split_pieces(tokens, TOKENIZER) == ["a", "\ufffd", "b"]


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    tokens = TOKENIZER.encode("é☃")
    assert len(tokens) > 2
    parts = tell(tokens)
    assert [part for part in parts if part] == ["é", "☃"]


def test_special_tokens_are_no_text() -> None:
    assert "".join(tell([*TOKENIZER.encode("Hi"), END])) == "Hi"


def test_what_may_become_a_stop_string_is_held_back_until_it_is_none() -> None:
    parts = tell(TOKENIZER.encode("a ST b STOP c"), stops=("STOP",))
    assert "".join(parts) == "a ST b "
    assert "S" not in "".join(tell(TOKENIZER.encode("a ST"), stops=("STOP",)))


def test_nothing_is_told_after_a_stop_string_or_a_mark() -> None:
    tokens = TOKENIZER.encode("one two <call>three</call> four")
    assert "".join(tell(tokens, stops=("four",), marks=("<call>",))) == "one two "


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [("a b c", ("c", "b"), "a "), ("a b c", (), "a b c"), ("a b c", ("x",), "a b c")],
)
def test_a_whole_text_is_cut_at_the_first_stop_string(
    text: str, stops: tuple[str, ...], cut: str
) -> None:
    assert cut_at_stop(text, stops) == cut
