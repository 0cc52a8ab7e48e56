"""Calls that somebody watches: their pieces are the answer, whatever else happens to them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.workers.serving.conftest import TINY
from training.data.tokenizer import ChatTokenizer
from webapp.accounts.models import Actor
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, Progress, read_pieces, read_sample
from webapp.fleet.models import BaseModel
from workers import pieces
from workers.sampler import Sampler

Purpose = SamplingCall.Purpose
TOKENIZER = ChatTokenizer.load(TINY)
PARAMS = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "stop": []}
Submit = Callable[..., SamplingCall]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Piece]]:
    """What samplers publish, in order."""
    said: list[tuple[str, Piece]] = []

    def hear(message: bytes) -> None:
        said.extend(read_pieces(message.decode()))

    monkeypatch.setattr(pieces, "publish_pieces", hear)
    return said


@pytest.fixture
def submit(alice: Actor, base_model: BaseModel) -> Submit:
    def submit(**columns: Any) -> SamplingCall:
        defaults: dict[str, Any] = {
            "project": alice.project,
            "purpose": Purpose.PLAYGROUND,
            "base_model": base_model,
            "is_streamed": True,
            "payload": {"prompt": TOKENIZER.encode("Hello"), "params": PARAMS},
        }
        return calls.submit_call(**defaults | columns)

    return submit


async def rest(sampler: Sampler) -> None:
    if sampler.publisher.sending is not None:
        await sampler.publisher.sending


def read(call: SamplingCall) -> dict[str, Any]:
    call.refresh_from_db()
    assert call.status == "done", call.error
    result: dict[str, Any] = json.loads(bytes(call.result or b""))
    return result


def hear(said: list[tuple[str, Piece]], index: int = 0) -> Piece | None:
    progress = Progress(index=index)
    for _, piece in said:
        if piece.index == index:
            progress.hear(piece)
    return progress.take()


def test_the_pieces_make_the_answer_that_the_row_has(submit: Submit, work: Any, said: Any) -> None:
    call = submit(payload={"prompt": [1, 5], "num_samples": 2, "params": PARAMS})
    work(rest)
    result = read(call)
    assert {request_id for request_id, _ in said} == {call.request_id}
    for index, sequence in enumerate(result["sequences"]):
        heard, whole = hear(said, index), read_sample(index, sequence)
        assert heard is not None
        assert heard.tokens == whole.tokens
        assert heard.logprobs == pytest.approx(whole.logprobs)
        assert heard.texts == whole.texts
        assert whole.text.startswith(heard.text)
    assert call.first_token_at is not None
    assert call.first_token_at <= (call.finished_at or call.first_token_at)


def test_a_watched_answer_is_the_one_of_an_unwatched_call(
    submit: Submit, work: Any, said: Any
) -> None:
    calls = [submit(is_streamed=is_streamed) for is_streamed in (True, False)]
    work(rest)
    watched, unwatched = (read(call) for call in calls)
    assert watched["sequences"][0]["tokens"] == unwatched["sequences"][0]["tokens"]
    assert {request_id for request_id, _ in said} == {calls[0].request_id}
    assert calls[1].first_token_at is None


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_whose_log_probabilities_nobody_reads_has_all_the_rest(
    submit: Submit, work: Any, said: Any, is_streamed: bool
) -> None:
    payload = {"prompt": TOKENIZER.encode("Hello"), "params": PARAMS}
    plain = submit(payload=payload)
    work(rest)
    said.clear()
    call = submit(payload={**payload, "without_logprobs": True}, is_streamed=is_streamed)
    work(rest)
    expected, (sequence,) = read(plain)["sequences"][0], read(call)["sequences"]
    assert expected["logprobs"]
    assert sequence == expected | {"logprobs": []}
    heard = hear(said)
    if is_streamed:
        assert heard is not None
        assert (heard.tokens, heard.logprobs) == (sequence["tokens"], [])
        assert heard.texts == sequence["pieces"]


def test_likely_tokens_come_with_the_pieces_and_in_the_result(
    submit: Submit, work: Any, said: Any
) -> None:
    payload = {"prompt": [1, 5], "params": PARAMS, "topk_sample_logprobs": 3}
    call = submit(payload=payload)
    work(rest)
    (sequence,) = read(call)["sequences"]
    heard = hear(said)
    assert heard is not None
    assert len(heard.alternatives) == len(sequence["alternatives"]) == len(sequence["tokens"])
    token, text, logprob = sequence["alternatives"][0][0]
    assert text == TOKENIZER.decode([token])
    assert [len(row) for row in sequence["alternatives"]] == [3] * len(sequence["tokens"])
    assert heard.alternatives[0][0][2] == pytest.approx(logprob)


def test_a_stop_string_is_in_the_tokens_and_not_in_an_openai_clients_text(
    submit: Submit, work: Any, said: Any
) -> None:
    params = {"max_tokens": 30, "temperature": 0.0}
    plain = submit(payload={"prompt": TOKENIZER.encode("What is"), "params": params})
    work(rest)
    text = read(plain)["sequences"][0]["text"]
    stop = text[4:7]
    said.clear()
    payload = {"prompt": TOKENIZER.encode("What is"), "params": {**params, "stop": [stop]}}
    call = submit(payload=payload, purpose=Purpose.OPENAI)
    work(rest)
    (sequence,) = read(call)["sequences"]
    heard = hear(said)
    assert heard is not None
    assert sequence["text"] == heard.text == text[: text.index(stop)]
    assert stop in "".join(sequence["pieces"])
    assert sequence["stop_reason"] == "stop"


def test_an_answer_that_tells_of_its_prompt_comes_whole(
    submit: Submit, work: Any, said: Any
) -> None:
    call = submit(payload={"prompt": [1, 5, 9], "params": PARAMS, "prompt_logprobs": True})
    work(rest)
    assert len(read(call)["prompt_logprobs"]) == 3
    assert said == []
