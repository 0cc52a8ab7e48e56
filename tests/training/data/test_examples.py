"""The loss mask, exact to the token, for the templates that models come with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.examples import (
    Example,
    encode_row,
    encode_rows,
    to_datum,
)
from training.data.previews import preview
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer, compile_template
from training.errors import InvalidInput

TINY = Path("tests/assets/tiny-chatml-1m")
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content | trim }}"
    "<|endoftext|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
GREETING = (  # as SmolLM2 does: a system message that the row does not have
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are Hone.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # as Qwen3 does: what was thought is written for the last turn only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}"
    "(thought){% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (  # as R1 does: the prompt opens what the row's answer does not have
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(TINY)


def with_template(tokenizer: ChatTokenizer, template: str) -> ChatTokenizer:
    return replace(tokenizer, template=template, render=compile_template(template))


def chat(*contents: str, system: str = "", number: int = 1, **metadata: Any) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    for place, content in enumerate(contents):
        messages.append({"role": "assistant" if place % 2 else "user", "content": content})
    return Row(number=number, messages=messages, metadata=metadata)


def masked_text(example: Example, tokenizer: ChatTokenizer) -> str:
    return tokenizer.decode(example.tokens[example.mask].tolist())


def masked_turns(example: Example, tokenizer: ChatTokenizer) -> list[str]:
    """The runs of tokens under the mask, each decoded."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.mask, [0]]).astype(int)))
    return [
        tokenizer.decode(example.tokens[start:end].tolist())
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def test_the_mask_covers_the_answer_and_its_end_token_and_nothing_else(
    tokenizer: ChatTokenizer,
) -> None:
    example = encode_row(chat("What is 2 + 3?", "The answer is 5."), tokenizer)
    assert masked_text(example, tokenizer) == "The answer is 5.<|im_end|>"
    assert example.num_weighted == int(example.mask.sum())


def test_every_assistant_turn_is_covered_in_a_long_conversation(tokenizer: ChatTokenizer) -> None:
    row = chat("Hi", "Hey!", "How  are\nyou?", "I'm well \U0001f642", "5 + 55?", "60", system="Be.")
    example = encode_row(row, tokenizer)
    assert masked_turns(example, tokenizer) == [
        "Hey!<|im_end|>",
        "I'm well \U0001f642<|im_end|>",
        "60<|im_end|>",
    ]


def test_tokens_are_those_of_the_whole_text(tokenizer: ChatTokenizer) -> None:
    row = chat("Hi", "\u00e9t\u00e9 \U0001f642\U0001f642", "a  1", "\n\n done \n", system="S")
    text = tokenizer.apply_template(row.messages)
    assert encode_row(row, tokenizer).tokens.tolist() == tokenizer.encode(text)


def test_a_conversation_that_ends_with_the_user_teaches_the_turns_before(
    tokenizer: ChatTokenizer,
) -> None:
    example = encode_row(chat("Hi", "Hey!", "Bye"), tokenizer)
    assert masked_text(example, tokenizer) == "Hey!<|im_end|>"


def test_an_answer_that_spells_the_header_is_not_mistaken_for_one(tokenizer: ChatTokenizer) -> None:
    answer = "write <|im_start|>assistant\nand then <|im_end|>\n as is"
    example = encode_row(chat("How does ChatML look?", answer), tokenizer)
    assert masked_text(example, tokenizer) == answer + "<|im_end|>"


def test_a_turn_of_weight_zero_is_context_only(tokenizer: ChatTokenizer) -> None:
    row = chat("Hi", "Wrong.", "Again", "Right.")
    row.messages[1]["weight"] = 0  # type: ignore[index]
    assert masked_text(encode_row(row, tokenizer), tokenizer) == "Right.<|im_end|>"


def test_a_token_across_the_headers_end_belongs_to_the_header(tokenizer: ChatTokenizer) -> None:
    stuck = with_template(
        tokenizer,
        "{{ messages[0].content }} th{% if messages | length > 1 %}"
        "{{ messages[1].content }}<|im_end|>{% endif %}",
    )
    example = encode_row(chat("say", "e end"), stuck)
    assert len(tokenizer.encode(" the")) == 1  # one token, two authors
    assert masked_text(example, stuck) == " end<|im_end|>"


def test_another_end_token_is_found_by_the_template(tokenizer: ChatTokenizer) -> None:
    other = with_template(tokenizer, HEADERS)
    example = encode_row(chat("Hi", " Hey! ", "Bye", "See you"), other)
    assert masked_turns(example, other) == [" Hey!<|endoftext|>", " See you<|endoftext|>"]


def test_a_system_message_of_the_template_is_not_learned(tokenizer: ChatTokenizer) -> None:
    greeting = with_template(tokenizer, GREETING)
    example = encode_row(chat("Hi", "Hey!", "Bye", "See you"), greeting)
    assert masked_turns(example, greeting) == ["Hey!<|im_end|>", "See you<|im_end|>"]
    assert "You are Hone." in greeting.decode(example.tokens.tolist())


def test_without_an_end_token_the_newline_ends_the_turn(tokenizer: ChatTokenizer) -> None:
    plain = with_template(tokenizer, PLAIN)
    assert masked_text(encode_row(chat("Hi", "Hey!"), plain), plain) == " Hey!\n"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: ChatTokenizer) -> None:
    forgetful = with_template(tokenizer, FORGETFUL)
    single = encode_row(chat("Hi", "Hey!"), forgetful)
    assert masked_text(single, forgetful) == "(thought)Hey!<|im_end|>"
    with pytest.raises(InvalidInput, match=r"row 7: .* writes message 2 otherwise when more"):
        encode_row(chat("Hi", "Hey!", "Bye", "Bye!", number=7), forgetful)


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(InvalidInput, match=r"row 1: .* begins message 2 otherwise than the prompt"):
        encode_row(chat("Hi", "Hey!"), with_template(tokenizer, THINKING))


def test_a_template_that_drops_the_answer_is_refused(tokenizer: ChatTokenizer) -> None:
    silent = with_template(tokenizer, "{{ messages[0].content }}")
    with pytest.raises(InvalidInput, match=r"row 3: no token .* is the assistant's"):
        encode_row(chat("Hi", "Hey!", number=3), silent)


def test_a_datum_speaks_of_the_next_token(tokenizer: ChatTokenizer) -> None:
    example = encode_row(chat("Hi", "Hey!"), tokenizer)
    datum = to_datum(example)
    targets, weights = datum.inputs["target_tokens"], datum.inputs["weights"]
    assert datum.tokens.tolist() == example.tokens[:-1].tolist()
    assert targets.tolist() == example.tokens[1:].tolist()
    assert tokenizer.decode(targets[weights == 1].tolist()) == "Hey!<|im_end|>"
    assert (str(targets.dtype), str(weights.dtype)) == ("int64", "float32")


def test_a_row_over_the_context_is_cut_at_its_end_and_reported(tokenizer: ChatTokenizer) -> None:
    long = chat("Hi", "word " * 100, number=4)
    encoded = encode_rows([chat("Hi", "Hey!"), long], tokenizer, max_length=30, overlong="truncate")
    assert (encoded.truncated, encoded.dropped) == ([4], [])
    cut, whole = encoded.examples[1], encode_row(long, tokenizer)
    assert cut.tokens.tolist() == whole.tokens[:30].tolist()
    assert cut.mask.tolist() == whole.mask[:30].tolist()
    assert cut.key == whole.key


def test_a_row_over_the_context_is_dropped_where_the_user_chose_so(
    tokenizer: ChatTokenizer,
) -> None:
    rows = [chat("Hi", "word " * 100, number=4), chat("Hi", "Hey!", number=5)]
    encoded = encode_rows(rows, tokenizer, max_length=30, overlong="drop")
    assert (encoded.truncated, encoded.dropped) == ([], [4])
    assert [example.number for example in encoded.examples] == [5]


def test_a_row_whose_answer_lies_beyond_the_context_cannot_be_truncated(
    tokenizer: ChatTokenizer,
) -> None:
    row = chat("word " * 100, "Hey!", number=9)
    encoded = encode_rows([row], tokenizer, max_length=30, overlong="truncate")
    assert (encoded.examples, encoded.truncated, encoded.dropped) == ([], [], [9])


def test_a_row_as_long_as_the_context_is_whole(tokenizer: ChatTokenizer) -> None:
    row = chat("Hi", "Hey!")
    length = len(encode_row(row, tokenizer).tokens)
    encoded = encode_rows([row], tokenizer, max_length=length, overlong="drop")
    assert (encoded.num_tokens, encoded.dropped) == (length, [])


def weighted_text(tokens: Sequence[dict[str, Any]]) -> str:
    return "".join(token["text"] for token in tokens if token["weight"])


def test_the_previews_texts_join_to_the_whole_row(tokenizer: ChatTokenizer) -> None:
    row = chat("\u00e9 \U0001f642\U0001f642", "na\u00efve \U0001f600 \u4f60\u597d", system="S")
    shown = preview([row], tokenizer)[0]
    assert "".join(token["text"] for token in shown["tokens"]) == tokenizer.apply_template(
        row.messages
    )
    assert weighted_text(shown["tokens"]) == "na\u00efve \U0001f600 \u4f60\u597d<|im_end|>"
    assert [token["id"] for token in shown["tokens"]] == encode_row(row, tokenizer).tokens.tolist()


def test_the_preview_stops_at_its_limit_and_shows_where_a_row_is_cut(
    tokenizer: ChatTokenizer,
) -> None:
    rows = [chat("Hi", "Hey!", number=number) for number in range(1, 9)]
    shown = preview(rows, tokenizer, limit=3, max_length=6)
    assert [row["number"] for row in shown] == [1, 2, 3]
    assert (len(shown[0]["tokens"]), shown[0]["num_cut"]) == (6, shown[0]["num_tokens"] - 6)


def test_the_preview_says_what_the_template_refuses(tokenizer: ChatTokenizer) -> None:
    shown = preview([chat("Hi", "Hey!")], with_template(tokenizer, THINKING))
    assert shown[0]["error"].startswith("row 1: the model's chat template begins message 2")
    assert shown[0]["tokens"] == []
