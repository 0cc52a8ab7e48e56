"""POST /inference/v1/completions, as Fireworks' training clients read it."""

from typing import Any

import pytest
from asgiref.sync import sync_to_async

from tests.webapp.openai.conftest import Client, Told
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import SamplingCall

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/inference/v1/completions"
PROMPT = [1, 5, 9, 33]
# What the SDK always sends.
ASKED: dict[str, Any] = {
    "prompt": PROMPT,
    "n": 1,
    "max_tokens": 5,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "stream": True,
    "raw_output": True,
    "perf_metrics_in_response": True,
    "seed": 3,
}


def read_choice(told: Told) -> dict[str, Any]:
    """As the SDK does: rows of all chunks, the rest of the last."""
    events = told.events
    rows: list[dict[str, Any]] = []
    for event in events:
        (choice,) = event["choices"]
        rows += (choice["logprobs"] or {}).get("content", [])
    text = "".join(event["choices"][0]["text"] for event in events)
    last: dict[str, Any] = events[-1]["choices"][0]
    return last | {"rows": rows, "text": text}


async def test_a_sample_comes_with_its_token_ids_and_both_log_probabilities(
    client: Client,
) -> None:
    told = await client.post(PATH, **ASKED, logprobs=True, top_logprobs=2)
    choice = read_choice(told)
    raw = choice["raw_output"]
    assert raw["prompt_token_ids"] == PROMPT
    assert len(raw["completion_token_ids"]) == len(choice["rows"])
    assert choice["finish_reason"] in ("stop", "length")
    for row, token in zip(choice["rows"], raw["completion_token_ids"], strict=True):
        assert row["token_id"] == token
        assert row["logprob"] == row["sampling_logprob"] < 0
        assert [type(each["token_id"]) for each in row["top_logprobs"]] == [int, int]
    call = await SamplingCall.objects.aget()
    assert call.purpose == "firetitan"
    usage = told.events[-1]["usage"]
    assert usage["completion_tokens"] == len(choice["rows"])


async def test_the_queues_seconds_are_told_in_the_last_chunk_and_in_headers(
    client: Client,
) -> None:
    told = await client.post(PATH, **ASKED)
    metrics = told.events[-1]["perf_metrics"]
    assert metrics["prompt-tokens"] == "4"
    spans = ("prefill-queue-duration", "server-time-to-first-token", "server-processing-time")
    assert all(float(metrics[name]) >= 0 for name in spans)
    whole = await client.open(
        "POST", PATH, {"model": "tiny/chat", **ASKED, "stream": False}, x_request_id="ab12"
    ).run()
    assert float(whole.headers["fireworks-prefill-queue-duration"]) >= 0
    assert whole.headers["x-request-id"] == "ab12"
    assert whole.json["choices"][0]["raw_output"] == read_choice(told)["raw_output"]


async def test_other_distributions_have_two_log_probabilities(client: Client) -> None:
    asked = ASKED | {"temperature": 0.7, "top_k": 4, "logprobs": True, "max_tokens": 8}
    rows = read_choice(await client.post(PATH, **asked))["rows"]
    completion = [row["token_id"] for row in rows]
    assert any(abs(row["logprob"] - row["sampling_logprob"]) > 0.01 for row in rows)
    scored = ASKED | {"prompt": PROMPT + completion, "max_tokens": 1, "echo": True}
    echoed = read_choice(await client.post(PATH, **scored, logprobs=True))["rows"]
    own = [row["logprob"] for row in echoed[len(PROMPT) : len(PROMPT) + len(completion)]]
    assert own == pytest.approx([row["logprob"] for row in rows], abs=1e-4)


async def test_an_echo_has_a_row_for_each_token_of_prompt_and_sample(client: Client) -> None:
    asked = ASKED | {"echo": True, "logprobs": True, "top_logprobs": 1}
    choice = read_choice(await client.post(PATH, **asked))
    ids = choice["raw_output"]["completion_token_ids"]
    assert ids[: len(PROMPT)] == PROMPT
    assert len(choice["rows"]) == len(ids)
    assert all(isinstance(row["logprob"], float) for row in choice["rows"])
    assert all(row["top_logprobs"] for row in choice["rows"])
    assert [row["sampling_logprob"] for row in choice["rows"][: len(PROMPT)]] == [None] * 4
    plain = read_choice(await client.post(PATH, **ASKED))
    assert ids[len(PROMPT) :] == plain["raw_output"]["completion_token_ids"]


async def test_the_last_tokens_of_the_prompt_alone_are_repeated(client: Client) -> None:
    whole = read_choice(await client.post(PATH, **ASKED, echo=True, logprobs=True))
    part = read_choice(await client.post(PATH, **ASKED, echo_last=2, logprobs=True))
    assert part["raw_output"]["prompt_token_ids"] == PROMPT
    assert part["raw_output"]["completion_token_ids"][:2] == PROMPT[-2:]
    assert part["rows"] == whole["rows"][2:]


async def test_a_prompt_alone_is_scored(client: Client) -> None:
    choice = read_choice(
        await client.post(PATH, **ASKED | {"max_tokens": 0, "echo": True, "logprobs": True})
    )
    assert choice["raw_output"]["completion_token_ids"] == PROMPT
    assert (len(choice["rows"]), choice["finish_reason"]) == (4, "length")


async def test_a_limit_beyond_the_context_ends_with_the_context(client: Client) -> None:
    for prompt in ([5] * 500, "x" * 500):
        asked = ASKED | {"prompt": prompt, "max_tokens": 1024, "ignore_eos": True}
        choice = read_choice(await client.post(PATH, **asked))
        raw = choice["raw_output"]
        assert len(raw["prompt_token_ids"]) + len(raw["completion_token_ids"]) == 512
        assert choice["finish_reason"] == "length"


async def test_what_would_need_a_store_is_refused_in_the_words_that_clients_know(
    client: Client,
) -> None:
    for name, value in (("routing_matrix_format", "parquet_v1"), ("sampling_mask", "parquet_v1")):
        told = await client.post(PATH, **ASKED, **{name: value})
        assert told.status == 400
        assert told.error["message"] == f"Extra inputs are not permitted, field: '{name}'"
    told = await client.post(PATH, **ASKED, include_routing_matrix=True)
    assert told.status == 400
    for fields in ({"prompt": [[1], [2]]}, {"min_p": 0.1}, {"images": ["data:"]}):
        assert (await client.post(PATH, **ASKED | fields)).status == 400
    for counts in ({"logprobs": 1001}, {"logprobs": 1, "top_logprobs": 1001}):
        assert (await client.post(PATH, **ASKED | counts)).status == 400


async def test_a_deployment_answers_by_its_resource_name(
    client: Client, checkpoint: Checkpoint
) -> None:
    create = sync_to_async(services.create_deployment)
    deployment = await create(actor=client.actor, name="eval", checkpoint=checkpoint)
    account = client.actor.project.pk
    name = f"accounts/{account}/deployments/eval"
    told = await client.post(PATH, **ASKED, model=name, prompt_cache_key="trajectory-1")
    assert told.status == 200
    assert told.events[0]["model"] == name
    await sync_to_async(services.stop_deployment)(actor=client.actor, deployment=deployment)
    told = await client.post(PATH, **ASKED, model=name)
    assert (told.status, told.error["code"]) == (404, "model_not_found")
