"""Calls are answered by the server, each in its caller's form, and none is lost."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from asgiref.sync import async_to_sync
from django.utils.timezone import now

from tests.workers.serving.conftest import MODEL, WORKER, finish, open_sampler
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls, services
from webapp.deployments.models import Deployment, HotLoad, SamplingCall
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.models import Run, Sample
from webapp.wire import wire_pb2 as pb
from workers.hotload import in_database
from workers.sampler import Sampler
from workers.vllm import SamplingServer

Status = SamplingCall.Status
MESSAGES = [{"role": "user", "content": "Hello"}]
PARAMS = {"max_tokens": 6, "temperature": 0.0, "seed": 1}
TOKENS = {"prompt": [1, 5, 9], "num_samples": 2, "params": PARAMS, "prompt_logprobs": True}


@pytest.fixture
def submit(alice: Actor, base_model: BaseModel) -> Callable[..., SamplingCall]:
    def submit(**columns: Any) -> SamplingCall:
        defaults: dict[str, Any] = {
            "project": alice.project,
            "purpose": SamplingCall.Purpose.PLAYGROUND,
            "base_model": base_model,
            "payload": {"messages": MESSAGES, "params": PARAMS},
        }
        return calls.submit_call(**defaults | columns)

    return submit


def read(call: SamplingCall) -> dict[str, Any]:
    call.refresh_from_db()
    assert call.status == Status.DONE, call.error
    result: dict[str, Any] = json.loads(bytes(call.result or b""))
    return result


def test_a_chat_is_answered_with_text_tokens_and_pieces(submit: Any, work: Any) -> None:
    call = submit()
    work()
    result = read(call)
    (sequence,) = result["sequences"]
    assert len(sequence["tokens"]) == len(sequence["logprobs"]) == len(sequence["pieces"])
    assert sequence["text"]
    assert sequence["text"] in "".join(sequence["pieces"])
    assert (result["adapter"], result["digest"]) == (None, "base")
    assert result["engine"].startswith(("built-in generator", "vLLM"))


def test_an_sdk_clients_samples_come_as_protobuf(submit: Any, work: Any) -> None:
    endless = TOKENS | {"params": PARAMS | {"stop": []}}
    call = submit(purpose=SamplingCall.Purpose.TINKER, payload=endless)
    work()
    call.refresh_from_db()
    output = pb.SampleResponse.FromString(bytes(call.result or b""))
    assert call.content_type == "application/x-protobuf"
    assert [len(sequence.tokens) for sequence in output.sequences] == [4 * 6, 4 * 6]
    assert len(output.prompt_logprobs) == 4 * 3
    assert (call.num_prompt_tokens, call.num_cached_tokens, call.num_sampled_tokens) == (3, 0, 12)


def test_everything_that_may_be_asked_of_a_prompt_is_answered(submit: Any, work: Any) -> None:
    targets = {"data": [5, -1], "shape": [2, 1]}
    payload = TOKENS | {
        "prompt_logprobs_last_n": 1,
        "topk_prompt_logprobs": 3,
        "topk_sample_logprobs": 2,
        "target_prompt_logprobs": targets,
        "prompt_alt_tokens_k": 4,
    }
    call = submit(purpose=SamplingCall.Purpose.TINKER, payload=payload)
    work()
    call.refresh_from_db()
    output = pb.SampleResponse.FromString(bytes(call.result or b""))
    scored = np.frombuffer(output.prompt_logprobs, "<f4")
    assert np.isnan(scored).tolist() == [True, True, False]
    topk = output.topk_prompt_logprobs
    assert (topk.length, topk.k) == (3, 3)
    assert np.frombuffer(topk.token_ids, "<i4")[:6].tolist() == [0] * 6
    named = np.frombuffer(output.target_prompt_logprobs.dense, "<f4")
    assert named[0] < 0
    assert named[1] == 0
    assert list(output.prompt_alt_tokens.tokens.shape) == [2, 4]
    (first, _) = output.sequences
    assert len(np.frombuffer(first.topk_sampled_logprobs.logprobs, "<f4")) == 2 * len(
        np.frombuffer(first.tokens, "<i4")
    )


def test_a_checkpoint_answers_otherwise_than_its_base_and_says_which_it_is(
    submit: Any, work: Any, checkpoint: Checkpoint
) -> None:
    base, tuned = submit(), submit(checkpoint=checkpoint)
    work()
    assert read(base)["sequences"] != read(tuned)["sequences"]
    assert read(tuned)["digest"] == checkpoint.digest
    assert tuned.hot_load is not None
    assert read(tuned)["adapter"] == tuned.hot_load.adapter_name


def test_many_calls_of_one_checkpoint_share_one_load(
    submit: Any, work: Any, checkpoint: Checkpoint
) -> None:
    many = [submit(checkpoint=checkpoint) for _ in range(5)]
    work()
    assert len({read(call)["sequences"][0]["text"] for call in many}) == 1
    assert HotLoad.objects.count() == 1


def test_a_call_that_cannot_be_answered_fails_alone_and_says_why(submit: Any, work: Any) -> None:
    bad = submit(payload=TOKENS | {"prompt": [1, 99_999]})
    good = submit()
    work()
    bad.refresh_from_db()
    assert (bad.status, bad.error_category) == (Status.FAILED, "user")
    assert "99999" in bad.error
    assert read(good)["sequences"]


def test_what_only_our_own_server_computes_is_the_callers_mistake_on_another(
    submit: Any, work: Any
) -> None:
    content = [{"token_id": 5, "logprob": -1.0}]
    choice = {
        "index": 0,
        "token_ids": [5],
        "finish_reason": "length",
        "logprobs": {"content": content},
    }
    other = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice]}))
    call = submit(
        purpose=SamplingCall.Purpose.TINKER,
        payload={"prompt": [1, 5], "num_samples": 1, "params": PARAMS, "prompt_alt_tokens_k": 2},
    )
    work(over=other)
    call.refresh_from_db()
    assert (call.status, call.error_category) == (Status.FAILED, "user")
    assert call.error.startswith("prompt_alt_tokens_k is computed by Hone's own sampling server")


def test_a_call_for_a_checkpoint_that_was_deleted_is_nobodys_fault_but_the_callers(
    submit: Any, work: Any, checkpoint: Checkpoint
) -> None:
    call = submit(checkpoint=checkpoint)
    Checkpoint.objects.update(deleted_at=now())
    work()
    call.refresh_from_db()
    assert (call.status, call.error_category) == (Status.FAILED, "user")
    assert "The checkpoint first was deleted" in call.error


def test_a_bug_is_one_calls_failure_and_not_the_samplers(
    submit: Any, work: Any, caplog: pytest.LogCaptureFixture
) -> None:
    odd, good = submit(payload={"messages": MESSAGES, "params": {"warmth": 1}}), submit()
    work()
    odd.refresh_from_db()
    assert (odd.status, odd.error_category) == (Status.FAILED, "server")
    assert "warmth" not in odd.error
    assert "warmth" in caplog.text
    assert read(good)["sequences"]


def test_a_runs_sample_becomes_its_row_with_tokens_and_logprobs(
    submit: Any, work: Any, run: Run, checkpoint: Checkpoint
) -> None:
    submit(
        purpose=SamplingCall.Purpose.RUN_SAMPLE,
        checkpoint=checkpoint,
        run=run,
        about={"run": run.pk, "step": 10, "prompt_index": 2},
    )
    work()
    sample = Sample.objects.get()
    assert (sample.run, sample.step, sample.prompt_index) == (run, 10, 2)
    assert (sample.prompt, sample.checkpoint) == (MESSAGES, checkpoint)
    assert sample.digest == checkpoint.digest
    assert [set(token) for token in sample.tokens] == [{"text", "id", "logprob"}] * len(
        sample.tokens
    )


def test_a_step_that_is_sampled_again_keeps_one_row(submit: Any, work: Any, run: Run) -> None:
    for _ in range(2):
        submit(
            purpose=SamplingCall.Purpose.RUN_SAMPLE,
            run=run,
            about={"run": run.pk, "step": 10, "prompt_index": 0},
        )
    work()
    assert Sample.objects.get().digest == run.base_model.digest


def test_waiting_samples_of_a_cancelled_run_are_cancelled(submit: Any, work: Any, run: Run) -> None:
    call = submit(purpose=SamplingCall.Purpose.RUN_SAMPLE, run=run, about={"step": 1})
    Run.objects.update(status=Run.Status.CANCELLED)
    work()
    call.refresh_from_db()
    assert call.status == Status.CANCELLED


def test_a_call_whose_server_is_lost_waits_for_the_next_start(submit: Any, work: Any) -> None:
    call = submit()

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    work(over=httpx.MockTransport(refuse))
    call.refresh_from_db()
    assert call.status == Status.QUEUED
    work(start="2")
    assert read(call)["sequences"]


def test_a_call_that_breaks_every_server_fails(submit: Any, transport: Any) -> None:
    call = submit()

    async def break_thrice() -> None:
        broken = httpx.MockTransport(lambda _: httpx.Response(500, json={"message": "broken"}))
        async with open_sampler(broken, engine="external") as sampler:
            for _ in range(3):
                for each in sampler.starts.values():
                    each.paused_until = 0.0
                await sampler.run_once()
                await sampler.wait()

    async_to_sync(break_thrice)()
    call.refresh_from_db()
    assert (call.status, call.error_category) == (Status.FAILED, "server")
    assert "broke 3 times" in call.error


def test_no_more_calls_are_taken_than_there_is_room_for(submit: Any, transport: Any) -> None:
    for _ in range(3):
        submit()
    seen: list[int] = []

    async def take() -> None:
        async with open_sampler(transport) as sampler:
            sampler.limit = 2  # of each server
            assert await sampler.run_once()
            seen.append(len(sampler.tasks))

    async_to_sync(take)()
    assert seen == [2]


def test_what_a_stopped_sampler_held_waits_again(submit: Any, transport: Any) -> None:
    call = submit(payload=TOKENS | {"params": {"max_tokens": 500, "stop": []}})

    async def begin_and_stop() -> None:
        async with open_sampler(transport) as sampler:
            await sampler.run_once()

    async_to_sync(begin_and_stop)()
    call.refresh_from_db()
    assert (call.status, call.worker) == (Status.QUEUED, "")


def test_a_call_that_is_cancelled_while_it_runs_leaves_the_server(
    submit: Any, transport: Any
) -> None:
    call = submit(payload=TOKENS | {"params": {"max_tokens": 500, "stop": []}})

    async def cancel() -> None:
        async with open_sampler(transport) as sampler:
            await sampler.run_once()
            await in_database(calls.cancel_call, call)
            await sampler.beat()
            await sampler.wait()
            assert not sampler.tasks

    async_to_sync(cancel)()
    call.refresh_from_db()
    assert (call.status, call.result) == (Status.CANCELLED, None)


def test_a_call_that_begins_while_the_sampler_beats_is_not_taken_for_a_cancelled_one(
    submit: Any, transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = submit(payload=TOKENS)
    renew_claims = calls.renew_claims

    async def begin_meanwhile() -> None:
        async with open_sampler(transport) as sampler:
            await sampler.meet_replicas()
            (start,) = sampler.starts.values()
            (taken,) = await in_database(calls.claim_calls, worker=WORKER, limit=1)
            loop = asyncio.get_running_loop()

            def begin() -> None:
                sampler.tasks[taken.pk] = asyncio.create_task(sampler.answer(taken, start))

            def renew(**asked: Any) -> set[int]:
                held = renew_claims(**asked)
                loop.call_soon_threadsafe(begin)
                return held

            monkeypatch.setattr(calls, "renew_claims", renew)
            await sampler.beat()
            await sampler.wait()
            assert not sampler.tasks

    async_to_sync(begin_meanwhile)()
    assert read(call)["sequences"]


def test_a_deployment_becomes_ready_with_its_proof(
    work: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    work()
    deployment.refresh_from_db()
    load = deployment.hot_loads.get()
    assert (deployment.status, load.status) == (Deployment.Status.READY, HotLoad.Status.READY)
    assert load.max_difference is not None
    assert load.max_difference < 1e-3


def test_a_deployment_of_other_weights_than_were_saved_fails_with_the_reason(
    work: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    Checkpoint.objects.update(digest="0" * 64)
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    work()
    deployment.refresh_from_db()
    assert deployment.status == Deployment.Status.FAILED
    assert "changed on disk" in deployment.error


def test_a_new_start_of_the_server_proves_its_deployments_again(
    work: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    work()
    work(start="2")
    second, first = HotLoad.objects.all()
    assert (first.status, second.status) == (HotLoad.Status.LOST, HotLoad.Status.READY)
    assert first.adapter_name != second.adapter_name
    deployment.refresh_from_db()
    assert deployment.status == Deployment.Status.READY


def test_a_question_to_a_deployment_is_answered_by_its_checkpoint(
    work: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    call = services.ask(
        actor=alice, deployment=deployment, messages=MESSAGES, params={"max_tokens": 4}
    )
    work()
    assert read(call)["digest"] == checkpoint.digest
    assert call.deployment_id == deployment.pk


def test_a_sampler_says_which_model_has_not_answered_yet(
    submit: Any, transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    samplers: list[Sampler] = []
    generate = SamplingServer.generate

    async def look_and_generate(server: SamplingServer, *arguments: Any) -> Any:
        await samplers[0].beat()
        said.append((await in_database(Worker.objects.get)).holds["loading"])
        return await generate(server, *arguments)

    async def answer_two() -> None:
        async with open_sampler(transport) as sampler:
            samplers.append(sampler)
            for _ in range(2):
                await in_database(submit)
                await finish(sampler)

    Worker.objects.create(name=WORKER, kind="sampler")
    monkeypatch.setattr(SamplingServer, "generate", look_and_generate)
    async_to_sync(answer_two)()
    assert said == [[MODEL], []]
