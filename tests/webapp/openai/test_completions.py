"""POST /v1/completions, as OpenAI describes it."""

from typing import Any

import pytest

from tests.webapp.openai.conftest import Client, Told
from webapp.deployments.models import SamplingCall

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/v1/completions"
MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]


def read_texts(told: Told) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in told.events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


async def test_a_text_goes_on(client: Client) -> None:
    told = await client.post(PATH, prompt="Hello", max_tokens=6, temperature=0)
    answer = told.json
    assert (told.status, answer["object"], answer["model"]) == (200, "text_completion", "tiny/chat")
    (choice,) = answer["choices"]
    assert (choice["index"], choice["logprobs"]) == (0, None)
    assert choice["text"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    call = await SamplingCall.objects.aget()
    assert (call.purpose, call.is_streamed) == ("openai", False)


async def test_a_stream_says_the_same(client: Client) -> None:
    asked = {"prompt": ["Hello", "How are"], "n": 2, "max_tokens": 8, "seed": 5}
    whole = await client.post(PATH, **asked)
    told = await client.post(PATH, **asked, stream=True, stream_options={"include_usage": True})
    assert told.headers["content-type"].startswith("text/event-stream")
    expected = {choice["index"]: choice["text"] for choice in whole.json["choices"]}
    assert read_texts(told) == expected
    assert len(expected) == 4
    *_, last = told.events
    assert (last["choices"], last["usage"]) == ([], whole.json["usage"])
    finishes = [
        choice["finish_reason"]
        for event in told.events
        for choice in event["choices"]
        if choice["finish_reason"]
    ]
    assert finishes == [choice["finish_reason"] for choice in whole.json["choices"]]


async def test_token_ids_go_on_like_their_text(client: Client) -> None:
    first = await client.post(PATH, prompt=[[1, 5, 9], [1, 5]], max_tokens=3, temperature=0)
    second = await client.post(PATH, prompt=[1, 5, 9], max_tokens=3, temperature=0)
    assert first.json["choices"][0]["text"] == second.json["choices"][0]["text"]
    assert len(first.json["choices"]) == 2


async def test_log_probabilities_speak_of_prompt_and_answer(client: Client) -> None:
    told = await client.post(
        PATH, prompt="Hello you", max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    (choice,) = told.json["choices"]
    logprobs = choice["logprobs"]
    sizes = {len(column) for column in logprobs.values()}
    usage = told.json["usage"]
    assert sizes == {usage["total_tokens"]}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(len(row) in (2, 3) for row in logprobs["top_logprobs"][1:])
    assert choice["text"].startswith("Hello you")
    joined = "".join(logprobs["tokens"])
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert joined[offset : offset + len(token)] == token


async def test_streamed_log_probabilities_are_the_whole_ones(client: Client) -> None:
    asked = {"prompt": "Hello", "max_tokens": 5, "seed": 2, "logprobs": 1}
    whole = (await client.post(PATH, **asked)).json["choices"][0]["logprobs"]
    told = await client.post(PATH, **asked, stream=True)
    parts = [event["choices"][0]["logprobs"] for event in told.events]
    joined: dict[str, list[Any]] = {
        name: [each for part in parts if part for each in part[name]] for name in whole
    }
    assert joined["tokens"] == whole["tokens"]
    assert joined["text_offset"] == whole["text_offset"]
    assert joined["token_logprobs"] == pytest.approx(whole["token_logprobs"], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "asked", "is_spared"),
    [
        (PATH, {"prompt": "Hi"}, True),
        (PATH, {"prompt": "Hi", "logprobs": 0}, False),
        ("/v1/chat/completions", {"messages": MESSAGES}, True),
        ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True}, False),
    ],
)
async def test_log_probabilities_that_nobody_asked_for_are_not_computed(
    client: Client, path: str, asked: dict[str, Any], is_spared: bool
) -> None:
    told = await client.post(path, max_tokens=4, **asked)
    assert (told.json["choices"][0]["logprobs"] is None) is is_spared
    call = await SamplingCall.objects.aget()
    assert call.payload.get("without_logprobs", False) is is_spared


async def test_a_prompt_alone_is_scored(client: Client) -> None:
    told = await client.post(PATH, prompt="Hello you", max_tokens=0, echo=True, logprobs=0)
    (choice,) = told.json["choices"]
    assert choice["text"] == "Hello you"
    assert len(choice["logprobs"]["tokens"]) == told.json["usage"]["prompt_tokens"]


async def test_a_stop_string_ends_the_text_before_it(client: Client) -> None:
    whole = (await client.post(PATH, prompt="What is", max_tokens=20, temperature=0)).json
    text = whole["choices"][0]["text"]
    stop = text[3:5]
    for is_streamed in (False, True):
        told = await client.post(
            PATH, prompt="What is", max_tokens=20, temperature=0, stop=stop, stream=is_streamed
        )
        found = read_texts(told)[0] if is_streamed else told.json["choices"][0]["text"]
        assert found == text[: text.index(stop)]


REFUSED: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"prompt": "x", "suffix": "y"}, 400, "suffix", "suffix is not supported"),
    ({"prompt": "x", "logit_bias": {"5": 1}}, 400, "logit_bias", "logit_bias"),
    ({"prompt": "x", "best_of": 3}, 400, "best_of", "best_of"),
    ({"prompt": "x", "response_format": {"type": "json_object"}}, 400, "response_format", ""),
    ({"prompt": 7}, 400, "prompt", "token ids"),
    ({"prompt": []}, 400, "prompt", "token ids"),
    ({"prompt": ["x"] * 200, "n": 2}, 400, "n", "400 samples"),
    ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "echo"),
    ({"prompt": "x", "n": "two"}, 400, "n", "whole number"),
    ({"prompt": [99999]}, 400, None, "out of vocabulary"),
    ({"prompt": "x", "temperature": -1}, 400, None, "temperature"),
    ({"prompt": "x " * 600}, 400, None, "context window"),
    ({"prompt": "x", "model": "nobody's"}, 404, "model", "no model"),
]


async def test_what_cannot_be_answered_is_refused_by_name(client: Client) -> None:
    for fields, status, param, words in REFUSED:
        for is_streamed in (False, True):
            told = await client.post(PATH, **fields, stream=is_streamed)
            assert (told.status, told.error["param"]) == (status, param), fields
            assert words in told.error["message"]
            assert told.error["type"] == "invalid_request_error"
