"""Calls of tools are read from an answer as its template teaches to write them."""

import json
from typing import Any

import pytest

from training.data.tool_calls import ToolCall, check_tools, has_mark, read_tool_calls
from training.errors import InvalidInput

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "note": {"type": "string"},
                    "more": {"type": "array"},
                },
            },
        },
    }
]


def write(call: object) -> str:
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_what_is_said_before_the_calls_is_the_content() -> None:
    first, second = ({"name": "add", "arguments": {"a": a}} for a in (1, 2))
    said, calls = read_tool_calls(f"Let me see.\n{write(first)}\n{write(second)}", TOOLS)
    assert said == "Let me see.\n"
    assert calls == [ToolCall(name="add", arguments=f'{{"a": {a}}}') for a in (1, 2)]


def test_an_answer_that_ends_within_its_call_has_made_it() -> None:
    _, calls = read_tool_calls('<tool_call>{"name": "add", "arguments": {}}', TOOLS)
    assert calls == [ToolCall(name="add", arguments="{}")]


def test_a_coders_call_has_values_of_the_kinds_that_the_tool_says() -> None:
    text = (
        "<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n<parameter=note>\n12\n"
        "</parameter>\n<parameter=more>\n[1, 2\n</parameter>\n</function>\n</tool_call>"
    )
    _, (call,) = read_tool_calls(text, TOOLS)
    assert call.name == "add"
    assert json.loads(call.arguments) == {"a": 12, "note": "12", "more": "[1, 2"}


def test_a_coders_value_that_cannot_be_written_again_is_text() -> None:
    half = '"\\ud800"'
    text = f"<tool_call><function=add><parameter=a>{half}</parameter></function></tool_call>"
    _, (call,) = read_tool_calls(text, TOOLS)
    assert json.loads(call.arguments) == {"a": half}


@pytest.mark.parametrize(
    "text",
    [
        "No call at all.",
        "<tool_call>add 1</tool_call>",
        write({"name": "add", "arguments": [1]}),
        write({"arguments": {}}),
        write([1]),
        write({"name": "add", "arguments": {}}) + "<tool_call>{</tool_call>",
        write({"name": "add", "arguments": {"a": float("nan")}}),
        write({"name": "add", "arguments": {"a": "\ud800"}}),
        f"<tool_call>{'[' * 100_000}",
    ],
)
def test_an_answer_with_a_broken_call_is_all_text(text: str) -> None:
    assert read_tool_calls(text, TOOLS) == (text, [])


def test_a_template_without_tools_takes_none() -> None:
    check_tools("{% if tools %}<tool_call>{% endif %}")
    assert has_mark("{% if tools %}<tool_call>{% endif %}")
    for template in ("{{ messages }}", None):
        assert not has_mark(template)
        with pytest.raises(InvalidInput, match="no place for them"):
            check_tools(template)
