"""Tools of a chat: told to the template, and their calls read from what the model writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.webapp.openai.conftest import TINY, Client
from training.data.tokenizer import ChatTokenizer
from webapp.fleet.models import BaseModel

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/v1/chat/completions"
TOKENIZER = ChatTokenizer.load(TINY)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
TEMPLATE = """{% if tools %}Tools: {{ tools | tojson }} Write <tool_call>.
{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for each in m.tool_calls or [] %}
{{ each.function.name }} {{ each.function.arguments | tojson }}{% endfor %}
{% endfor %}assistant: """
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 3 + 4?"}],
    "tools": [TOOL],
    "seed": 1,
}


class Script:
    """A sampling server whose model writes what the test tells it; and what it was asked."""

    def __init__(self) -> None:
        self.answer = ""
        self.prompts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/inference/v1/generate":
            return httpx.Response(200, json={"data": []})
        asked = json.loads(request.content)
        self.prompts.append(TOKENIZER.decode(asked["token_ids"]))
        tokens = TOKENIZER.encode(self.answer)
        if not asked.get("stream"):
            return httpx.Response(200, json={"choices": [describe(tokens, "stop")]})
        events = [
            {"choices": [describe([token], "stop" if at == len(tokens) else None)]}
            for at, token in enumerate(tokens, start=1)
        ]
        lines = [f"data: {json.dumps(each)}\n\n" for each in (*events, {"choices": []})]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


def describe(tokens: list[int], reason: str | None) -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -0.5} for token in tokens]
    return {
        "index": 0,
        "token_ids": tokens,
        "finish_reason": reason,
        "logprobs": {"content": content},
    }


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def transport(script: Script) -> httpx.AsyncBaseTransport:
    return httpx.MockTransport(script)


@pytest.fixture
async def taught(client: Client, base_model: BaseModel, tmp_path: Path) -> Client:
    """Of a model whose template has tools."""
    folder = tmp_path / "taught"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    await BaseModel.objects.filter(pk=base_model.pk).aupdate(path=str(folder))
    return client


async def test_a_call_is_read_from_the_answer(taught: Client, script: Script) -> None:
    script.answer = f"Let me see. {CALL}"
    told = await taught.post(PATH, **ASKED)
    (choice,) = told.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see. "
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": 3, "b": 4}
    assert '"name": "add"' in script.prompts[0]


async def test_a_streamed_call_comes_as_a_call_and_never_as_text(
    taught: Client, script: Script
) -> None:
    script.answer = f"Well. {CALL}"
    told = await taught.post(PATH, **ASKED, stream=True)
    deltas = [event["choices"][0]["delta"] for event in told.events]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Well. "
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert [(call["index"], call["type"]) for call in calls] == [(0, "function")]
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 3, "b": 4}
    assert told.events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_an_answer_without_a_call_is_text(taught: Client, script: Script) -> None:
    script.answer = "It is 7, and <tool_call> is a mark."
    for is_streamed in (False, True):
        told = await taught.post(PATH, **ASKED, stream=is_streamed)
        choices = [each["choices"][0] for each in (told.events if is_streamed else [told.json])]
        key = "delta" if is_streamed else "message"
        text = "".join(choice[key].get("content") or "" for choice in choices)
        assert (text, choices[-1]["finish_reason"]) == (script.answer, "stop")


async def test_a_calls_result_goes_back_through_the_template(
    taught: Client, script: Script
) -> None:
    script.answer = "7"
    call = {"id": "c1", "type": "function"}
    call |= {"function": {"name": "add", "arguments": '{"a": 3}'}}  # type: ignore[dict-item]
    messages = [
        *ASKED["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    told = await taught.post(PATH, **ASKED | {"messages": messages, "tool_choice": "none"})
    assert told.json["choices"][0]["message"]["content"] == "7"
    assert 'add {"a": 3}' in script.prompts[0]
    assert "Tools:" not in script.prompts[0]
