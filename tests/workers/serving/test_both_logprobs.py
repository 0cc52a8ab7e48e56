"""Two log-probabilities of servers that tell one: vLLM's, and none of ours."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from tests.workers.serving.conftest import MODEL
from training.types import SampleRequest, SamplingParams
from workers.both_logprobs import complete_both
from workers.generation import App
from workers.residents import TurnThread
from workers.vllm import SamplingServer

PROMPT = [1, 5, 9]
COLUMNS = ("raw_logprob", "drawn_logprob")


class Plain(httpx.ASGITransport):
    """Our server without what only ours says; every request's own words are kept."""

    def __init__(self, turns: TurnThread) -> None:
        super().__init__(App(turns))
        self.asked: list[dict[str, object]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        answer = await super().handle_async_request(request)
        said = json.loads(await answer.aread())
        for choice in said.get("choices", ()):
            rows = choice["logprobs"]["content"]
            choice["logprobs"]["content"] = [
                {name: value for name, value in row.items() if name not in COLUMNS} for row in rows
            ]
        return httpx.Response(answer.status_code, json=said)


@pytest.fixture
def plain(turns: TurnThread) -> Plain:
    return Plain(turns)


@pytest.fixture
async def server(plain: Plain) -> AsyncIterator[SamplingServer]:
    async with SamplingServer("http://sampler", transport=plain) as server:
        yield server


def make_request(**params: float) -> SampleRequest:
    return SampleRequest(
        prompt=PROMPT,
        params=SamplingParams(max_tokens=8, seed=2, stop=(), **params),  # type: ignore[arg-type]
        num_samples=2,
        with_both_logprobs=True,
    )


async def test_a_tempered_sample_is_read_once_more_for_the_models_own(
    server: SamplingServer, plain: Plain, turns: TurnThread
) -> None:
    request = make_request(temperature=0.6)
    output = await server.generate(MODEL, request)
    completed = await complete_both(server, MODEL, request, output)
    async with SamplingServer("http://s", transport=httpx.ASGITransport(App(turns))) as ours:
        expected = await ours.generate(MODEL, request)
    assert len(plain.asked) == 3
    for found, told in zip(completed.sequences, expected.sequences, strict=True):
        assert found.tokens == told.tokens
        assert found.raw_logprobs == pytest.approx(told.raw_logprobs, abs=1e-4)
        assert found.drawn_logprobs == pytest.approx(told.drawn_logprobs, abs=1e-4)


async def test_the_models_own_distribution_needs_no_second_reading(
    server: SamplingServer, plain: Plain
) -> None:
    request = make_request()
    output = await server.generate(MODEL, request)
    completed = await complete_both(server, MODEL, request, output)
    assert len(plain.asked) == 1
    for sequence in completed.sequences:
        assert sequence.raw_logprobs == sequence.drawn_logprobs == sequence.logprobs


async def test_a_sample_to_the_end_of_the_context_has_no_second_column(
    server: SamplingServer,
) -> None:
    request = make_request(temperature=0.5)
    params = replace(request.params, max_tokens=8)
    request = replace(request, prompt=[5] * 504, params=params, num_samples=1)
    completed = await complete_both(server, MODEL, request, await server.generate(MODEL, request))
    (sequence,) = completed.sequences
    assert sequence.raw_logprobs == [None] * 8
    assert sequence.drawn_logprobs == sequence.logprobs


async def test_who_does_not_ask_gets_neither(server: SamplingServer, plain: Plain) -> None:
    request = replace(make_request(temperature=0.6), with_both_logprobs=False)
    output = await server.generate(MODEL, request)
    assert await complete_both(server, MODEL, request, output) is output
    assert len(plain.asked) == 1
