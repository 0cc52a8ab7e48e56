"""What is asked and what should be answered."""

from training.data.prompts import to_prompt
from training.data.rows import Row

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hey!"},
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "Thanks"},
]


def test_the_last_assistant_turn_is_asked_for() -> None:
    prompt = to_prompt(Row(number=7, messages=CHAT))
    assert (prompt.number, prompt.messages, prompt.target) == (7, CHAT[:3], "It is 5.")


def test_a_target_column_says_what_is_right() -> None:
    assert to_prompt(Row(number=1, messages=CHAT, metadata={"target": "5"})).target == "5"


def test_a_target_that_is_no_text_is_written_as_json() -> None:
    assert (
        to_prompt(Row(number=1, messages=CHAT, metadata={"target": {"a": 5}})).target == '{"a":5}'
    )
