"""All weights of the real vLLM's model, exchanged in place; and what it refuses to take."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.vllm_server import MODEL, TINY, RealVllm
from tests.workers.vllm.conftest import (
    BALLAST,
    PROMPT,
    TOLERANCE,
    Checkpoints,
    ask_logprobs,
    differ,
    digest_whole,
    write_whole,
)
from training.errors import InvalidInput
from training.model_files import WEIGHTS_FILE
from training.types import SampleRequest, SamplingParams
from workers.vllm import PauseMode, SamplingServer
from workers.vllm_wire import StreamedToken

LONG = SampleRequest(prompt=[1, 5], params=SamplingParams(max_tokens=400, seed=1, stop=()))
TRIES = 5


async def put(server: SamplingServer, folder: Path, mode: PauseMode = "keep") -> float:
    return await server.replace_weights(
        folder, digest=digest_whole(folder), version=folder.name, mode=mode
    )


async def test_weights_there_and_back_are_exact_with_a_head_that_shares_the_embedding(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    """vLLM's CPU build alone keeps the old head: the new body would speak through it."""
    here = checkpoints.score(PROMPT)
    there = checkpoints.score(PROMPT, whole=checkpoints.other)
    assert differ(here, there) > 1
    before = await ask_logprobs(server, MODEL)
    for folder, expected in ((checkpoints.other, there), (TINY, here), (checkpoints.other, there)):
        pause = await put(server, folder)
        assert pause > 0
        assert differ(await ask_logprobs(server, MODEL), expected) < TOLERANCE
        facts = await server.describe()
        assert (facts.weight_version, facts.digest) == (folder.name, digest_whole(folder))
    await put(server, TINY)
    assert await ask_logprobs(server, MODEL) == before


async def test_an_adapter_is_of_the_weights_that_are_in_place(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    await server.load_adapter("on-it", checkpoints.first, base=MODEL)
    await ask_logprobs(server, "on-it")
    await put(server, checkpoints.other)
    expected = checkpoints.score(PROMPT, checkpoints.first, checkpoints.other)
    assert differ(await ask_logprobs(server, "on-it"), expected) < TOLERANCE


async def test_what_was_read_with_the_old_weights_is_not_used_with_the_new_ones(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    prompt = [5 + index % 900 for index in range(300)]
    request = SampleRequest(prompt=prompt, params=SamplingParams(max_tokens=1, temperature=0.0))
    await server.generate(MODEL, request)
    await put(server, checkpoints.other)
    output = await server.generate(MODEL, request)
    assert output.prompt_cache_hit_tokens == 0
    sample = output.sequences[0]
    expected = checkpoints.score([*prompt, *sample.tokens], whole=checkpoints.other)[-1]
    assert sample.logprobs[0] == pytest.approx(expected, abs=TOLERANCE)


async def test_a_request_that_is_kept_goes_on_with_the_new_weights(
    real_vllm: RealVllm, checkpoints: Checkpoints
) -> None:
    async with Watched(real_vllm.url) as server:
        tokens, logprobs = await keep_in_mid_stream(server, checkpoints.other)
        assert len(tokens) == 400
        old, new = (score_long(checkpoints, tokens, each) for each in (TINY, checkpoints.other))
        apart = [abs(a - b) > TOLERANCE for a, b in zip(logprobs, old, strict=True)]
        switch = apart.index(True)
        assert switch >= 8
        assert differ(logprobs[switch:], new[switch:]) < TOLERANCE
        expected = checkpoints.score(PROMPT, whole=checkpoints.other)
        assert differ(await ask_logprobs(server, MODEL), expected) < TOLERANCE


async def test_a_request_that_is_waited_for_ends_with_the_old_weights(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    tokens, logprobs = await exchange_in_mid_stream(server, checkpoints.other, "wait")
    assert differ(logprobs, score_long(checkpoints, tokens, TINY)) < TOLERANCE
    expected = checkpoints.score(PROMPT, whole=checkpoints.other)
    assert differ(await ask_logprobs(server, MODEL), expected) < TOLERANCE


class Watched(SamplingServer):
    """Says how many requests it held when it stood still for the last exchange."""

    num_held = 0

    async def _start_update(self) -> None:
        self.num_held = (await self.read_stats()).running
        await super()._start_update()


async def keep_in_mid_stream(server: Watched, folder: Path) -> tuple[list[int], list[float]]:
    """The client may have been given no time until the stream was over: then once more."""
    for _ in range(TRIES):
        told = await exchange_in_mid_stream(server, folder, "keep")
        if server.num_held > BALLAST.num_samples:
            return told
        await put(server, TINY)
    pytest.fail("each exchange came after the stream")


async def exchange_in_mid_stream(
    server: SamplingServer, folder: Path, mode: PauseMode
) -> tuple[list[int], list[float]]:
    """The tokens of one long request; the exchange begins with its eighth."""
    digest = digest_whole(folder)
    await server.prepare_weights(folder, digest)  # so that it begins at once
    said: list[StreamedToken] = []
    exchange: asyncio.Task[float] | None = None
    ballast = asyncio.create_task(server.generate(MODEL, BALLAST))
    async for token in server.stream(MODEL, LONG):
        if isinstance(token, StreamedToken):
            said.append(token)
        if len(said) == 8 and exchange is None:
            exchange = asyncio.create_task(
                server.replace_weights(
                    folder, digest=digest, version="other", mode=mode, is_prepared=True
                )
            )
    assert exchange is not None
    await asyncio.gather(exchange, ballast)
    logprobs = [each.logprob for each in said if each.logprob is not None]
    assert len(logprobs) == len(said)
    return [each.token for each in said], logprobs


def score_long(checkpoints: Checkpoints, tokens: Sequence[int], whole: Path) -> list[float]:
    """Of sampled tokens."""
    return checkpoints.score([*LONG.prompt, *tokens], whole=whole)[len(LONG.prompt) - 1 :]


def cut_in_half(folder: Path) -> str:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])
    return digest_whole(folder)


def lose_file(folder: Path) -> str:
    (folder / WEIGHTS_FILE).unlink()
    return "0" * 64


def say_another_digest(_folder: Path) -> str:
    return "0" * 64


def lose_a_weight(folder: Path) -> str:
    shutil.rmtree(folder)
    return write_whole(folder, seed=7, drop="model.layers.2.mlp.up_proj.weight")


def cut_a_weight(folder: Path) -> str:
    shutil.rmtree(folder)
    return write_whole(folder, seed=7, cut="model.layers.2.mlp.up_proj.weight")


def lose_everything(folder: Path) -> str:
    shutil.rmtree(folder)
    return "0" * 64


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_in_half, "is damaged: model.safetensors"),
        (lose_file, "is damaged: model.safetensors"),
        (say_another_digest, "and 000000000000 was asked for"),
        (lose_a_weight, "has no model.layers.2.mlp.up_proj.weight"),
        (cut_a_weight, "up_proj.weight has the shape"),
        (lose_everything, "is damaged: model.safetensors"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_weights_that_are_not_the_right_ones_are_refused_and_the_old_ones_serve_on(
    server: SamplingServer,
    checkpoints: Checkpoints,
    tmp_path: Path,
    damage: Callable[[Path], str],
    text: str,
) -> None:
    folder = tmp_path / "bad"
    write_whole(folder, seed=6)
    digest = damage(folder)
    with pytest.raises(InvalidInput, match=f"^bad .*{text}"):
        await server.replace_weights(folder, digest=digest, version="bad", mode="keep")
    await serves_the_start(server, checkpoints)


async def serves_the_start(server: SamplingServer, checkpoints: Checkpoints) -> None:
    assert differ(await ask_logprobs(server, MODEL), checkpoints.score(PROMPT)) < TOLERANCE
    facts = await server.describe()
    assert facts.weight_version != "bad"


async def test_weights_that_change_between_the_look_and_the_load_leave_the_old_ones_serving(
    server: SamplingServer,
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker finds out while it loads, with half of the new weights in place already."""
    folder = tmp_path / "bad"
    digest = write_whole(folder, seed=6)
    start = SamplingServer._start_update

    async def start_late(self: SamplingServer) -> None:
        shutil.rmtree(folder)
        write_whole(folder, seed=6, drop="model.layers.3.mlp.up_proj.weight")
        await start(self)

    monkeypatch.setattr(SamplingServer, "_start_update", start_late)
    running = asyncio.create_task(server.generate(MODEL, LONG))
    with pytest.raises(InvalidInput, match=r"^bad could not be loaded"):
        await server.replace_weights(folder, digest=digest, version="bad", mode="keep")
    await serves_the_start(server, checkpoints)
    tokens = (await running).sequences[0]
    assert differ(tokens.logprobs, score_long(checkpoints, tokens.tokens, TINY)) < TOLERANCE


async def test_an_exchange_whose_caller_died_in_the_middle_does_not_stop_the_next_one(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    await server._post("/pause?mode=keep")
    await server._post("/start_weight_update")
    await put(server, checkpoints.other)
    expected = checkpoints.score(PROMPT, whole=checkpoints.other)
    assert differ(await ask_logprobs(server, MODEL), expected) < TOLERANCE


async def test_an_exchange_is_ended_even_where_nobody_waits_for_it(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    folder, digest = checkpoints.other, checkpoints.other_digest
    await server.prepare_weights(folder, digest)
    waiting = asyncio.create_task(
        server.replace_weights(folder, digest=digest, version="o", mode="keep", is_prepared=True)
    )
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(60):
        while (await server.describe()).digest != checkpoints.other_digest:
            await asyncio.sleep(0.01)
    expected = checkpoints.score(PROMPT, whole=checkpoints.other)
    async with asyncio.timeout(60):
        assert differ(await ask_logprobs(server, MODEL), expected) < TOLERANCE
