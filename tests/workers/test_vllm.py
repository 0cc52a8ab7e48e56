"""The client of sampling servers, and the supervisor with a real server that is killed."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from training.errors import InvalidInput
from training.types import NO_TOKEN, SampleRequest, SamplingParams, TargetTokens
from workers.vllm import ModelMissing, SamplingServer, ServerLost
from workers.vllm_process import build_command, build_environment, end_group
from workers.vllm_wire import StreamedToken, build_body

TINY = Path(__file__).parents[1] / "assets" / "tiny-chatml-1m"
REQUEST = SampleRequest(
    prompt=[7, 8], params=SamplingParams(max_tokens=3), num_samples=2, prompt_logprobs=True
)
# As vLLM 0.32 answers: choices in any order, more keys than are read.
VLLM_ANSWER: dict[str, Any] = {
    "request_id": "1",
    "choices": [
        {
            "index": 1,
            "token_ids": [5],
            "finish_reason": "stop",
            "stop_reason": None,
            "logprobs": {"content": [{"token_id": 5, "logprob": -0.25, "rank": 1}]},
        },
        {
            "index": 0,
            "token_ids": [3, 4],
            "finish_reason": "length",
            "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]},
        },
    ],
    "prompt_logprobs": [None, {"8": {"logprob": -3.0, "rank": 9}, "1": {"logprob": -0.1}}],
}

EVERYTHING = SampleRequest(
    prompt=[7, 8, 3],
    params=SamplingParams(max_tokens=1),
    prompt_logprobs=True,
    topk_prompt_logprobs=2,
    topk_sample_logprobs=1,
    target_prompt_logprobs=TargetTokens(ids=np.array([5, -1]), shape=(2, 1)),
    prompt_alt_tokens_k=4,
)
VLLM_TABLES: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "token_ids": [3],
            "finish_reason": "length",
            "logprobs": {
                "content": [
                    {
                        "token_id": 3,
                        "logprob": -1.0,
                        "top_logprobs": [
                            {"token_id": 3, "logprob": -1.0, "rank": 2},
                            {"token_id": 9, "logprob": -0.25, "rank": 1},
                        ],
                    }
                ]
            },
        }
    ],
    "prompt_logprobs": [
        None,
        {"8": {"logprob": -3.0}, "1": {"logprob": -0.1}, "2": {"logprob": -0.2}},
        {"3": {"logprob": -4.0}, "2": {"logprob": -1.0}, "1": {"logprob": -0.5}},
    ],
    "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}


def answer_with(answer: Callable[[httpx.Request], httpx.Response]) -> SamplingServer:
    return SamplingServer("http://sampler", transport=httpx.MockTransport(answer))


async def test_an_answer_of_vllm_is_read_in_order_of_its_samples() -> None:
    async with answer_with(lambda _: httpx.Response(200, json=VLLM_ANSWER)) as server:
        output = await server.generate("base", REQUEST)
    assert [list(each.tokens) for each in output.sequences] == [[3, 4], [5]]
    assert [list(each.logprobs) for each in output.sequences] == [[-1.0, -2.0], [-0.25]]
    assert [each.stop_reason for each in output.sequences] == ["length", "stop"]
    assert output.prompt_logprobs == [None, -3.0]


def test_stop_is_said_in_three_ways() -> None:
    def said(stop: tuple[str, ...] | tuple[int, ...] | None) -> tuple[object, ...]:
        request = SampleRequest(prompt=[1], params=SamplingParams(stop=stop))
        body = build_body("m", request)
        params = body["sampling_params"]
        return params["stop"], params["stop_token_ids"], params["ignore_eos"], "output_mode" in body

    assert said(None) == ([], [], False, False)
    assert said(()) == ([], [], True, False)
    assert said((2, 3)) == ([], [2, 3], False, False)
    assert said(("\n\n",)) == (["\n\n"], [], False, True)


def test_what_was_not_chosen_is_not_sent() -> None:
    body = build_body("m", SampleRequest(prompt=[1], params=SamplingParams()))
    assert not {"seed", "max_tokens", "prompt_logprobs"} & set(body["sampling_params"])


def test_what_was_chosen_is_said_in_vllms_words_and_what_only_ours_answers_beside_them() -> None:
    body = build_body("m", replace(EVERYTHING, prompt_logprobs=False, prompt_logprobs_last_n=None))
    assert body["sampling_params"]["prompt_logprobs"] == 2
    assert body["sampling_params"]["logprobs"] == 1 + 3
    assert (body["prompt_alt_tokens_k"], "prompt_logprobs_last_n" in body) == (4, False)
    assert body["target_prompt_logprobs"] == {"data": [5, -1], "shape": [2, 1]}


def test_neighbouring_seeds_share_no_samples_and_what_is_not_drawn_is_asked_for_once() -> None:
    def said(seed: int, num_samples: int, temperature: float = 1.0) -> tuple[int, int]:
        params = SamplingParams(seed=seed, temperature=temperature)
        request = SampleRequest(prompt=[1], params=params, num_samples=num_samples)
        chosen = build_body("m", request)["sampling_params"]
        return chosen["seed"], chosen["n"]

    assert said(5, 1) == (5, 1)
    (first, _), (second, _) = said(5, 4), said(6, 4)
    assert abs(first - second) >= 4  # vLLM draws sample i with seed + i
    assert said(5, 4, temperature=0.0)[1] == 1


async def test_a_sample_that_is_not_drawn_is_told_as_often_as_it_was_asked_for() -> None:
    request = replace(REQUEST, params=SamplingParams(temperature=0.0), num_samples=3)
    one = {**VLLM_ANSWER["choices"][1], "index": 0}
    async with answer_with(lambda _: httpx.Response(200, json={"choices": [one]})) as server:
        output = await server.generate("base", replace(request, prompt_logprobs=False))
    assert [list(each.tokens) for each in output.sequences] == [[3, 4]] * 3
    text = f"data: {json.dumps({'choices': [one]})}\n\ndata: [DONE]\n\n"
    async with answer_with(lambda _: httpx.Response(200, text=text)) as server:
        said = [each async for each in server.stream("base", request)]
    told = [(each.index, each.token) for each in said if isinstance(each, StreamedToken)]
    assert told == [(0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4)]


@pytest.mark.parametrize("broken", ["abort", "error", "repetition"])
async def test_a_request_that_the_server_gave_up_is_lost_and_not_short(broken: str) -> None:
    choice = {**VLLM_ANSWER["choices"][0], "index": 0, "finish_reason": broken}
    text = f"data: {json.dumps({'choices': [choice]})}\n\n"
    async with answer_with(lambda _: httpx.Response(200, json={"choices": [choice]})) as server:
        with pytest.raises(ServerLost, match=broken):
            await server.generate("base", REQUEST)
    async with answer_with(lambda _: httpx.Response(200, text=text)) as server:
        with pytest.raises(ServerLost, match=broken):
            await anext(server.stream("base", REQUEST))


async def test_a_stream_whose_engine_dies_is_lost() -> None:
    text = 'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n'
    async with answer_with(lambda _: httpx.Response(200, text=text)) as server:
        with pytest.raises(ServerLost, match="EngineCore died"):
            await anext(server.stream("base", REQUEST))


async def test_the_likeliest_are_taken_from_what_vllm_says() -> None:
    """It says the token that is there too, and scores the whole prompt."""
    request = replace(
        EVERYTHING, prompt_logprobs_last_n=1, target_prompt_logprobs=None, prompt_alt_tokens_k=0
    )
    async with answer_with(lambda _: httpx.Response(200, json=VLLM_TABLES)) as server:
        output = await server.generate("base", request)
    assert output.prompt_logprobs == [None, None, -4.0]
    table, sampled = output.topk_prompt_logprobs, output.sequences[0].topk_logprobs
    assert table is not None
    assert sampled is not None
    assert table.token_ids.tolist() == [[0, 0], [0, 0], [1, 2]]
    assert table.logprobs.tolist() == [[NO_TOKEN] * 2, [NO_TOKEN] * 2, [-0.5, -1.0]]
    assert (sampled.token_ids.tolist(), sampled.logprobs.tolist()) == ([[9]], [[-0.25]])
    assert output.prompt_cache_hit_tokens == 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"prompt_alt_tokens_k": 0}, "target_prompt_logprobs"),
        ({}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": None}, "prompt_alt_tokens_k"),
    ],
)
async def test_what_vllm_does_not_compute_is_refused_by_name(
    changes: dict[str, Any], name: str
) -> None:
    async with answer_with(lambda _: httpx.Response(200, json=VLLM_TABLES)) as server:
        with pytest.raises(InvalidInput, match=f"^{name} is computed by Hone's own"):
            await server.generate("base", replace(EVERYTHING, **changes))


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (400, {"error": {"message": "too long"}}, InvalidInput, "^too long$"),
        (422, {"detail": "n"}, InvalidInput, "n"),
        (404, {"error": {"message": "no adapter x"}}, ModelMissing, "^no adapter x$"),
        (500, {"error": {"message": "engine died"}}, ServerLost, "500: engine died"),
    ],
)
async def test_each_kind_of_refusal_is_its_own_error(
    status: int, body: object, error: type[Exception], text: str
) -> None:
    async with answer_with(lambda _: httpx.Response(status, json=body)) as server:
        with pytest.raises(error, match=text):
            await server.generate("x", REQUEST)
        with pytest.raises(error, match=text):
            await anext(server.stream("x", REQUEST))


async def test_a_server_that_is_not_there_is_lost_and_not_healthy() -> None:
    async with SamplingServer(f"http://127.0.0.1:{find_free_port()}") as server:
        assert not await server.health()
        with pytest.raises(ServerLost):
            await server.unload_adapter("x")
        with pytest.raises(ServerLost):
            await anext(server.stream("x", REQUEST))


async def test_loading_what_is_loaded_is_no_error_and_text_answers_are_fine() -> None:
    said = []

    def answer(request: httpx.Request) -> httpx.Response:
        said.append(json.loads(request.content))
        if len(said) == 1:
            return httpx.Response(200, text="Success: LoRA adapter 'a' added successfully.")
        message = "The lora adapter 'a' has already been loaded."
        return httpx.Response(400, json={"error": {"message": message}})

    async with answer_with(answer) as server:
        await server.load_adapter("a", "/adapters/1")
        await server.load_adapter("a", "/adapters/1", base="tiny")
    adapter = {"lora_name": "a", "lora_path": "/adapters/1"}
    assert said == [adapter, adapter | {"base_model": "tiny"}]


async def test_a_stream_that_breaks_says_why() -> None:
    piece = {"choices": [VLLM_ANSWER["choices"][0]]}
    text = f'data: {json.dumps(piece)}\n\ndata: {{"error": {{"message": "not finite"}}}}\n\n'
    async with answer_with(lambda _: httpx.Response(200, text=text)) as server:
        tokens = server.stream("m", REQUEST)
        first = await anext(tokens)
        assert isinstance(first, StreamedToken)
        assert (first.index, first.token, first.logprob, first.stop_reason) == (1, 5, -0.25, "stop")
        with pytest.raises(InvalidInput, match="not finite"):
            await anext(tokens)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def list_group(group: int) -> dict[int, str]:
    """Process id -> command line of the living processes of a group."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found[int(stat.parent.name)] = line
    return found


async def wait_until_gone(group: int) -> None:
    async with asyncio.timeout(60):
        while list_group(group):
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_killed_server_is_lost_to_whoever_waits_for_it() -> None:
    port = find_free_port()
    command = build_command({"tiny": TINY}, port=port, threads=1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.watched", *command),
        stdin=asyncio.subprocess.PIPE,
        env=build_environment(),
        start_new_session=True,
    )
    async with SamplingServer(f"http://127.0.0.1:{port}") as server, asyncio.timeout(240):
        while not await server.is_working():
            await asyncio.sleep(0.05)
        await server.generate("tiny", REQUEST)
        params = SamplingParams(max_tokens=511, stop=())
        endless = SampleRequest(prompt=[1], params=params, num_samples=32)
        waiting = asyncio.create_task(server.generate("tiny", endless))
        await asyncio.sleep(0.05)
        kill_server(process.pid)
        with pytest.raises(ServerLost):
            await waiting
        await process.wait()
        await end_group(process)
        await wait_until_gone(process.pid)
        assert not await server.is_working()


def kill_server(group: int) -> None:
    for process, line in list_group(group).items():
        if "workers.watched" not in line:
            with suppress(ProcessLookupError):  # it went with the one before
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
async def test_no_server_outlives_a_supervisor_that_is_killed() -> None:
    """The supervisor is a process of its own here; its server has a child that ignores SIGTERM."""
    stubborn = "trap '' TERM; sleep 600"
    server = f"import subprocess; subprocess.Popen(['sh', '-c', {stubborn!r}]).wait()"
    supervisor = f"""
import subprocess, sys, time
watched = subprocess.Popen(
    [sys.executable, "-m", "workers.watched", sys.executable, "-c", {server!r}],
    stdin=subprocess.PIPE, start_new_session=True,
)
sys.stdout.write(f"{{watched.pid}}\\n"); sys.stdout.flush()
time.sleep(600)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", supervisor, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    group = int(await process.stdout.readline())
    async with asyncio.timeout(60):
        while len(list_group(group)) < 4:
            await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    await wait_until_gone(group)
    assert not list_group(group)


def test_a_servers_threads_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert build_environment({"KEY": "value"})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert build_environment({"KEY": "value"})["KEY"] == "value"
