"""Comparisons as a model is asked them, and what is read from its answer."""

from pathlib import Path

import pytest

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.recipes import comparisons
from training.types import SampledSequence, SampleOutput

TINY = ChatTokenizer.load(Path("tests/assets/tiny-chatml-1m"))
PROMPT = [{"role": "user", "content": "What is 3 + 4?"}]
RIGHT = [{"role": "assistant", "content": "7"}]
WRONG = [{"role": "assistant", "content": "8"}]


def answer(logprob: float | None) -> SampleOutput:
    nothing = SampledSequence(tokens=[], logprobs=[], stop_reason="length")
    return SampleOutput(sequences=[nothing], prompt_logprobs=[None, None, logprob])


def test_a_comparison_shows_the_prompt_and_both_answers_in_their_order() -> None:
    (message,) = comparisons.build_messages(PROMPT, RIGHT, WRONG)
    assert message == {
        "role": "user",
        "content": "What is 3 + 4?\n\nA: 7\n\nB: 8\n\nWhich answer is better, A or B?",
    }


def test_of_a_conversation_it_is_told_who_speaks_and_what_was_called() -> None:
    system = {"role": "system", "content": "Be brief."}
    called = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    (message,) = comparisons.build_messages([system, *PROMPT], [called], WRONG)
    assert message["content"].startswith("system: Be brief.\nuser: What is 3 + 4?\n\nA: [{")


def test_a_question_ends_where_the_model_would_say_a_or_b() -> None:
    messages = comparisons.build_messages(PROMPT, RIGHT, WRONG)
    question = comparisons.encode_question(TINY, messages)
    assert TINY.decode(question.tokens).endswith("A or B?<|im_end|>\n<|im_start|>assistant\n")
    assert [TINY.decode([label]) for label in question.labels] == ["A", "B"]
    first, second = question.make_requests()
    assert list(first.prompt) == [*question.tokens, question.labels[0]]
    assert list(second.prompt) == [*question.tokens, question.labels[1]]


def test_a_preference_is_the_share_of_a_among_both_labels() -> None:
    assert comparisons.read_preference(answer(-1.0), answer(-1.0)) == 0.5
    # exp(-0.5) against exp(-2.5): 1 / (1 + exp(-2))
    assert comparisons.read_preference(answer(-0.5), answer(-2.5)) == pytest.approx(0.880797)
    assert comparisons.read_preference(answer(-2000.0), answer(0.0)) < 1e-300
    with pytest.raises(InvalidInput, match="told no log-probability"):
        comparisons.read_preference(answer(None), answer(-1.0))
