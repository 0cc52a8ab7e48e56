"""The built-in sampling server, asked by the client that also asks vLLM."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest, SamplingParams, TargetTokens
from workers.generation import App, read_arguments, read_setup, settle_soon
from workers.residents import Residents, Setup, TurnThread
from workers.vllm import ModelMissing, SamplingServer
from workers.vllm_process import build_command
from workers.vllm_wire import StreamedToken, StreamedUsage

TINY = Path(__file__).parents[1] / "assets" / "tiny-chatml-1m"
PARAMS = SamplingParams(max_tokens=8, seed=4, stop=())
REQUEST = SampleRequest(prompt=[1, 5, 9, 33], params=PARAMS)
ENDLESS = SampleRequest(prompt=[1, 5, 9], params=SamplingParams(max_tokens=509, seed=1, stop=()))


def write_adapter(folder: Path, seed: int, base: str = "") -> Path:
    """Rank 2 on one layer, strong enough to change what is sampled."""
    generator = torch.Generator().manual_seed(seed)
    layer = "base_model.model.model.layers.3.mlp.down_proj"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(2, 384, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(128, 2, generator=generator),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 4, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def residents() -> Residents:
    return Residents(Setup(models={"tiny": TINY, "tiny-too": TINY}, max_models=1))


@pytest.fixture
async def turns(residents: Residents) -> AsyncIterator[TurnThread]:
    thread = TurnThread(residents, on_death=lambda: None)
    thread.start()
    yield thread
    if thread.is_alive:
        await asyncio.to_thread(thread.stop)


@pytest.fixture
async def server(turns: TurnThread) -> AsyncIterator[SamplingServer]:
    transport = httpx.ASGITransport(App(turns))
    async with SamplingServer("http://sampler", transport=transport) as server:
        yield server


def sample_here(request: SampleRequest, adapter: Path | None = None) -> Sequence[int]:
    return answer_here(request, adapter).sequences[0].tokens


def answer_here(request: SampleRequest, adapter: Path | None = None) -> SampleOutput:
    generator = Generator.load(TINY)
    if adapter:
        generator.load_adapter("it", adapter)
    generator.submit(request, adapter="it" if adapter else None)
    while not (finished := generator.step()):
        pass
    assert not isinstance(finished[0].result, InvalidInput)
    return finished[0].result


async def test_a_sample_over_http_is_the_one_that_the_generator_makes(
    server: SamplingServer,
) -> None:
    output = await server.generate("tiny", REQUEST)
    assert output.sequences[0].tokens == sample_here(REQUEST)
    assert (len(output.sequences[0].logprobs), output.sequences[0].stop_reason) == (8, "length")
    assert output.prompt_logprobs is None
    assert await server.health()


async def test_samples_and_prompt_logprobs_come_in_order(server: SamplingServer) -> None:
    request = SampleRequest(prompt=[1, 5, 9], params=PARAMS, num_samples=3, prompt_logprobs=True)
    output = await server.generate("tiny", request)
    assert output.sequences[0].tokens != output.sequences[1].tokens
    assert len(output.sequences) == 3
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [type(value) for value in output.prompt_logprobs[1:]] == [float, float]


async def test_tables_over_http_are_those_that_the_generator_makes(server: SamplingServer) -> None:
    targets = TargetTokens(
        ids=np.array([5, 7]),
        shape=(2, 9),
        row_starts=np.array([0, 0, 2]),
        columns=np.array([1, 8]),
    )
    request = SampleRequest(
        prompt=[1, 5, 9],
        params=PARAMS,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs=targets,
        prompt_alt_tokens_k=4,
    )
    over, here = await server.generate("tiny", request), answer_here(request)
    assert over.prompt_logprobs is None
    tables = [
        (each.topk_prompt_logprobs, each.sequences[0].topk_logprobs, each.prompt_alt_tokens)
        for each in (over, here)
    ]
    for found, expected in zip(*tables, strict=True):
        assert found is not None
        assert expected is not None
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert np.allclose(found.logprobs, expected.logprobs, atol=1e-5)
    assert over.target_prompt_logprobs is not None
    assert here.target_prompt_logprobs is not None
    assert np.allclose(over.target_prompt_logprobs, here.target_prompt_logprobs, atol=1e-5)


async def test_streamed_tokens_are_the_same_ones(server: SamplingServer) -> None:
    whole = await server.generate("tiny", REQUEST)
    *news, usage = [each async for each in server.stream("tiny", REQUEST)]
    assert usage == StreamedUsage(num_cached_tokens=0)
    expected = whole.sequences[0]
    pieces = [piece for piece in news if isinstance(piece, StreamedToken)]
    assert [piece.token for piece in pieces] == expected.tokens
    assert [piece.logprob for piece in pieces] == pytest.approx(expected.logprobs, abs=1e-5)
    assert [piece.stop_reason for piece in pieces] == [None] * 7 + ["length"]


async def test_adapters_are_loaded_used_and_unloaded_by_name(
    server: SamplingServer, tmp_path: Path
) -> None:
    first, second = (write_adapter(tmp_path / str(seed), seed, "tiny") for seed in (1, 2))
    await server.load_adapter("run@1", first)
    await server.load_adapter("run@2", second)
    await server.load_adapter("run@1", first)
    names = ("run@1", "run@2", "tiny")
    outputs = await asyncio.gather(*(server.generate(name, REQUEST) for name in names))
    tokens = [list(output.sequences[0].tokens) for output in outputs]
    expected = [sample_here(REQUEST, first), sample_here(REQUEST, second), sample_here(REQUEST)]
    assert tokens == expected
    assert tokens[0] != tokens[1] != tokens[2]
    with pytest.raises(InvalidInput, match="already loaded"):
        await server.load_adapter("run@1", second)
    await server.unload_adapter("run@1")
    with pytest.raises(ModelMissing, match=r"run@1 does not exist"):
        await server.generate("run@1", REQUEST)
    with pytest.raises(ModelMissing, match=r"run@1 is not loaded"):
        await server.unload_adapter("run@1")


async def test_an_adapter_comes_back_with_its_base_model_after_both_left_memory(
    server: SamplingServer, residents: Residents, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path, 1)
    await server.load_adapter("mine", folder, base="tiny")
    before = await server.generate("mine", REQUEST)
    await server.generate("tiny-too", REQUEST)
    assert list(residents.residents) == ["tiny-too"]
    assert await server.generate("mine", REQUEST) == before
    assert list(residents.residents) == ["tiny"]


async def test_a_request_for_a_model_without_room_waits_for_the_busy_one(
    server: SamplingServer,
) -> None:
    long = SampleRequest(prompt=[1], params=SamplingParams(max_tokens=100, seed=1, stop=()))
    outputs = await asyncio.gather(server.generate("tiny", long), server.generate("tiny-too", long))
    assert outputs[0] == outputs[1]


async def test_adapters_beyond_the_limit_leave_memory_and_still_answer(tmp_path: Path) -> None:
    residents = Residents(Setup(models={"tiny": TINY}, max_adapters=2))
    for seed in range(4):
        residents.load_adapter(f"run@{seed}", write_adapter(tmp_path / str(seed), seed), None)
    generator = residents.residents["tiny"].generator
    assert list(generator.loaded) == ["run@2", "run@3"]
    turns = TurnThread(residents, on_death=lambda: None)
    turns.start()
    transport = httpx.ASGITransport(App(turns))
    async with SamplingServer("http://sampler", transport=transport) as server:
        output = await server.generate("run@0", REQUEST)
    turns.stop()
    assert output.sequences[0].tokens == sample_here(REQUEST, tmp_path / "0")
    assert list(generator.loaded) == ["run@3", "run@0"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "token_ids|model is missing"),
        ({"model": "tiny", "token_ids": []}, "The prompt is empty"),
        ({"model": "tiny", "token_ids": [1.5]}, "token_ids must be a list of int"),
        ({"model": "tiny", "token_ids": [1, 2048]}, "Token id 2048"),
        (
            {"model": "tiny", "token_ids": [1], "sampling_params": {"max_tokens": 512}},
            "context window: 1 + 512 > 512",
        ),
        (
            {"model": "tiny", "token_ids": [1], "sampling_params": {"temperature": "hot"}},
            "temperature must be float, not 'hot'",
        ),
        (
            {"model": "tiny", "token_ids": [1], "sampling_params": {"n": True}},
            "n must be int, not True",
        ),
        (
            {"model": "tiny", "token_ids": [1, 2], "target_prompt_logprobs": {"shape": [1]}},
            "target_prompt_logprobs must be an object with a shape of two numbers",
        ),
        (
            {
                "model": "tiny",
                "token_ids": [1, 2],
                "target_prompt_logprobs": {"shape": [1, 1], "data": [2**63]},
            },
            "target_prompt_logprobs has a number beyond int64",
        ),
        (
            {"model": "tiny", "token_ids": [1, 2], "prompt_logprobs_last_n": 1},
            "prompt_logprobs_last_n needs prompt_logprobs",
        ),
    ],
)
async def test_a_bad_request_is_answered_with_what_is_wrong(
    turns: TurnThread, body: dict[str, object], message: str
) -> None:
    for stream in (False, True):
        answer = await post(turns, "/inference/v1/generate", json.dumps(body | {"stream": stream}))
        assert answer.status_code == 400
        said = answer.json()["error"]["message"]
        assert any(part in said for part in message.split("|"))


async def post(turns: TurnThread, path: str, content: str) -> httpx.Response:
    transport = httpx.ASGITransport(App(turns))
    headers = {"content-type": "application/json; charset=utf-8"}
    async with httpx.AsyncClient(transport=transport, base_url="http://sampler") as client:
        return await client.post(path, content=content, headers=headers)


async def test_what_is_not_json_or_not_a_route_is_said_so(turns: TurnThread) -> None:
    assert "not JSON" in (await post(turns, "/v1/load_lora_adapter", "{")).text
    assert "JSON object" in (await post(turns, "/v1/load_lora_adapter", "[]")).text
    assert (await post(turns, "/nowhere", "{}")).status_code == 404
    transport = httpx.ASGITransport(App(turns))
    async with httpx.AsyncClient(transport=transport, base_url="http://sampler") as client:
        plain = await client.post("/v1/load_lora_adapter", content="{}")
        models = await client.get("/v1/models")
    assert (plain.status_code, "application/json" in plain.text) == (400, True)
    assert [each["id"] for each in models.json()["data"]] == ["tiny", "tiny-too"]


async def test_an_adapter_needs_a_folder_and_a_base_model_of_this_server(
    server: SamplingServer, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="is not an adapter"):
        await server.load_adapter("none", tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="an adapter of another/model, which is not served"):
        await server.load_adapter("other", write_adapter(tmp_path / "other", 1, "another/model"))
    with pytest.raises(InvalidInput, match="tiny is the name of a model"):
        await server.load_adapter("tiny", write_adapter(tmp_path / "tiny", 1, "tiny"))


async def test_a_base_model_whose_files_are_gone_is_missing_and_the_others_still_answer(
    tmp_path: Path,
) -> None:
    turns = TurnThread(Residents(Setup(models={"gone": tmp_path, "tiny": TINY})), lambda: None)
    turns.start()
    transport = httpx.ASGITransport(App(turns))
    async with SamplingServer("http://sampler", transport=transport) as server:
        with pytest.raises(ModelMissing, match="the model gone is not at"):
            await server.generate("gone", REQUEST)
        assert len((await server.generate("tiny", REQUEST)).sequences) == 1
    await asyncio.to_thread(turns.stop)


async def test_a_client_that_hangs_up_stops_its_request(
    server: SamplingServer, residents: Residents
) -> None:
    waiting = asyncio.create_task(server.generate("tiny", ENDLESS))
    await wait_for_jobs(residents, 1)
    waiting.cancel()
    await wait_for_jobs(residents, 0)
    assert residents.is_idle
    assert residents.residents["tiny"].generator.is_idle


async def test_a_stream_that_is_closed_stops_its_request(residents: Residents) -> None:
    turns = TurnThread(residents, on_death=lambda: None)
    turns.start()
    body = {"model": "tiny", "token_ids": [1], "stream": True, "sampling_params": {}}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/inference/v1/generate",
        "headers": [(b"content-type", b"application/json")],
    }
    sent: list[bytes] = []
    is_started = asyncio.Event()
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": json.dumps(body).encode()}
    ]

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await is_started.wait()
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(b"")
        if len(sent) == 3:
            is_started.set()

    await App(turns)(scope, receive, send)
    await wait_for_jobs(residents, 0)
    await asyncio.to_thread(turns.stop)
    assert residents.residents["tiny"].generator.is_idle
    assert 3 <= len(sent) < 500


async def wait_for_jobs(residents: Residents, count: int) -> None:
    async with asyncio.timeout(60):
        while sum(len(each.jobs) for each in list(residents.residents.values())) != count:
            await asyncio.sleep(0.01)


async def test_a_bug_in_a_step_ends_the_server_and_is_not_waited_for(
    residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = asyncio.Event()
    loop = asyncio.get_running_loop()
    turns = TurnThread(residents, on_death=lambda: void(loop.call_soon_threadsafe(died.set)))
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    turns.start()
    turns.post(lambda: void(1 / 0))
    async with asyncio.timeout(60):
        await died.wait()
    await asyncio.to_thread(turns.thread.join)
    transport = httpx.ASGITransport(App(turns))
    async with SamplingServer("http://sampler", transport=transport) as server:
        assert not await server.health()


def void(_: object) -> None:
    """For what is called for its effect."""


def test_a_supervisors_command_line_is_read_as_it_was_meant() -> None:
    command = build_command({"a/b": Path("/models/b")}, port=7, max_models=5)
    options = read_arguments(command[3:])
    setup = read_setup(options)
    assert (setup.models, setup.max_models, setup.device) == ({"a/b": Path("/models/b")}, 5, "cpu")
    assert options.port == 7


def test_the_command_line_names_models_by_their_paths() -> None:
    setup = read_setup(
        read_arguments(
            ["--model", "a/b=/models/b=1", "--model", "c=/c", "--port", "1", "--dtype", "bfloat16"]
        )
    )
    assert setup.models == {"a/b": Path("/models/b=1"), "c": Path("/c")}
    assert setup.dtype is torch.bfloat16


def test_who_waited_in_a_loop_that_has_ended_is_passed_over() -> None:
    """A caller went away in mid-answer: the thread that answers everybody else goes on."""
    loop = asyncio.new_event_loop()
    answer: asyncio.Future[int] = loop.create_future()
    loop.close()
    settle_soon(loop, answer, 1)
    assert not answer.done()
