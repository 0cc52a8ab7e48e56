"""POST /v1/chat/completions: messages, tools, streams."""

from typing import Any

import pytest

from tests.webapp.openai.conftest import Client, Told

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 3 + 4?"}],
    "temperature": 0,
    "max_tokens": 20,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def read_content(told: Told, index: int = 0) -> str:
    deltas = [
        choice["delta"]
        for event in told.events
        for choice in event["choices"]
        if choice["index"] == index
    ]
    assert deltas[0] == {"role": "assistant", "content": ""}
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_a_question_is_answered(client: Client) -> None:
    told = await client.post(PATH, **ASKED)
    (choice,) = told.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": "7"}
    assert (choice["finish_reason"], told.json["object"]) == ("stop", "chat.completion")


async def test_a_stream_says_the_same_in_deltas(client: Client) -> None:
    asked = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Tell me about yourself"}]},
        ],
        "n": 2,
        "seed": 4,
        "max_completion_tokens": 12,
    }
    whole = (await client.post(PATH, **asked)).json
    told = await client.post(PATH, **asked, stream=True, stream_options={"include_usage": True})
    contents = [choice["message"]["content"] for choice in whole["choices"]]
    assert [read_content(told, index) for index in (0, 1)] == contents
    assert told.events[-1]["usage"] == whole["usage"]
    assert len({event["id"] for event in told.events}) == 1


async def test_log_probabilities_name_tokens_and_their_rivals(client: Client) -> None:
    asked = ASKED | {"logprobs": True, "top_logprobs": 3}
    whole = (await client.post(PATH, **asked)).json["choices"][0]["logprobs"]["content"]
    told = await client.post(PATH, **asked, stream=True)
    parts = [event["choices"][0]["logprobs"] for event in told.events]
    streamed = [row for part in parts if part for row in part["content"]]
    assert [row["token"] for row in streamed] == [row["token"] for row in whole]
    assert (whole[0]["token"], whole[0]["bytes"]) == ("7", [55])
    assert [len(row["top_logprobs"]) for row in whole] == [3] * len(whole)
    assert whole[0]["top_logprobs"][0]["logprob"] == whole[0]["logprob"]


async def test_a_model_without_tools_refuses_them(client: Client) -> None:
    told = await client.post(PATH, **ASKED, tools=[TOOL])
    assert told.status == 400
    assert "no place for them" in told.error["message"]
    assert (await client.post(PATH, **ASKED, tools=[TOOL], tool_choice="none")).status == 200


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "is empty"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "robot"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content",
        "read text only",
    ),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"tools": [{"type": "web"}]}, "tools.0.type", "function"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]},
        "tools.0.function.parameters",
        "an object",
    ),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "auto or none"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    *(
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
            "no JSON object",
        )
        # What a text inside of the body escapes is no more storable than what the body does.
        for arguments in ("[", '{"a": NaN}', r'{"a": "\u0000"}', r'{"\ud800": 1}')
    ),
]


async def test_what_cannot_be_answered_is_refused_by_name(client: Client) -> None:
    for fields, param, words in REFUSED:
        told = await client.post(PATH, **ASKED | fields)
        assert (told.status, told.error["param"]) == (400, param), fields
        assert words in told.error["message"]
