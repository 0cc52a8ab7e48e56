"""What the real vLLM answers is what the engine says of the same tokens."""

import asyncio
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.vllm_server import MODEL, TINY
from tests.workers.vllm.conftest import PROMPT, TOLERANCE, Checkpoints
from training.engine.generate import Generator
from training.engine.sampling import drawn_logprobs_of, temper
from training.errors import InvalidInput
from training.types import SampledSequence, SampleRequest, SamplingParams
from workers.vllm import ModelMissing, SamplingServer
from workers.vllm_wire import StreamedToken, StreamedUsage

EOS = 2


def make_prompts(number: int = 8, length: int = 48) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(4, 2048, length).tolist() for _ in range(number)]


async def test_log_probabilities_of_prompts_and_samples_agree_with_the_engine(
    server: SamplingServer, checkpoints: Checkpoints, record_property: Any
) -> None:
    params = SamplingParams(max_tokens=32, seed=4, stop=())
    requests = [
        SampleRequest(prompt=prompt, params=params, prompt_logprobs=True)
        for prompt in make_prompts()
    ]
    outputs = await asyncio.gather(*(server.generate(MODEL, request) for request in requests))
    differences = []
    for request, output in zip(requests, outputs, strict=True):
        sample = output.sequences[0]
        expected = checkpoints.score([*request.prompt, *sample.tokens])
        found = [*(output.prompt_logprobs or ())[1:], *sample.logprobs]
        assert len(found) == len(expected) == 48 - 1 + 32
        differences += [abs(a - (b or 0.0)) for a, b in zip(expected, found, strict=True)]
    record_property("mean_difference", statistics.mean(differences))
    record_property("max_difference", max(differences))
    assert max(differences) < TOLERANCE
    assert statistics.mean(differences) < 1e-4


async def test_seeded_requests_that_share_their_steps_draw_what_each_draws_alone(
    server: SamplingServer,
) -> None:
    """3200 tokens are read in pieces of 2048: a piece in a step ended vLLM's CPU build."""
    params = SamplingParams(max_tokens=8, seed=4, stop=())
    requests = [SampleRequest(prompt=each, params=params) for each in make_prompts(8, 400)]
    together = await asyncio.gather(*(server.generate(MODEL, each) for each in requests))
    alone = [await server.generate(MODEL, each) for each in requests]
    assert [each.sequences[0].tokens for each in together] == [
        each.sequences[0].tokens for each in alone
    ]


@pytest.mark.parametrize(
    "chosen",
    [{"temperature": 0.6}, {"temperature": 1.4, "top_p": 0.5}, {"top_k": 3}, {"temperature": 0.0}],
    ids=str,
)
async def test_sampled_log_probabilities_are_of_the_tempered_distribution_before_it_is_cut(
    server: SamplingServer, chosen: dict[str, Any]
) -> None:
    params = SamplingParams(max_tokens=12, seed=9, stop=(), **chosen)
    request = SampleRequest(prompt=PROMPT, params=params, topk_sample_logprobs=4)
    sample = (await server.generate(MODEL, request)).sequences[0]
    logits = compute_logits(list(sample.tokens))
    logprobs = (logits / (params.temperature or 1.0)).log_softmax(-1)
    said = logprobs[range(12), list(sample.tokens)].tolist()
    assert sample.logprobs == pytest.approx(said, abs=TOLERANCE)
    best = logprobs.topk(4)
    assert sample.topk_logprobs is not None
    assert sample.topk_logprobs.token_ids.tolist() == best.indices.tolist()
    assert np.allclose(sample.topk_logprobs.logprobs, best.values, atol=TOLERANCE)


@pytest.mark.parametrize(
    "chosen",
    [{"temperature": 0.7, "top_p": 0.6}, {"top_k": 3}, {"temperature": 0.0}, {"stop": ("qqq",)}],
    ids=str,
)
async def test_the_models_own_log_probability_is_told_beside_that_of_what_was_drawn_from(
    server: SamplingServer, chosen: dict[str, Any]
) -> None:
    params = SamplingParams(**{"max_tokens": 12, "seed": 9, "stop": (), **chosen})
    request = SampleRequest(prompt=PROMPT, params=params, with_both_logprobs=True)
    others = [
        server.generate(MODEL, replace(request, with_both_logprobs=False, topk_sample_logprobs=k))
        for k in (0, 1, 7)
    ]
    output, *_ = await asyncio.gather(server.generate(MODEL, request), *others)
    sample = output.sequences[0]
    tokens = torch.tensor(sample.tokens)
    logits = compute_logits(list(sample.tokens))
    own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    tempered = temper(logits, [params.temperature or 1.0] * len(tokens))
    drawn = drawn_logprobs_of(tempered, [params] * len(tokens), tokens)
    assert sample.raw_logprobs == pytest.approx(own.tolist(), abs=TOLERANCE)
    assert sample.drawn_logprobs == pytest.approx(drawn.tolist(), abs=TOLERANCE)


def compute_logits(tokens: list[int]) -> torch.Tensor:
    """At each place that one of them was drawn at."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[*PROMPT, *tokens]])).logits
    return logits[0, len(PROMPT) - 1 : -1]


async def test_the_likeliest_of_a_prompts_places_are_the_engines(server: SamplingServer) -> None:
    request = SampleRequest(
        prompt=PROMPT,
        params=SamplingParams(max_tokens=1),
        prompt_logprobs=True,
        prompt_logprobs_last_n=4,
        topk_prompt_logprobs=3,
    )
    generator = Generator.load(TINY)
    generator.submit(request)
    while not (finished := generator.step()):
        pass
    expected, found = finished[0].result, await server.generate(MODEL, request)
    assert not isinstance(expected, InvalidInput)
    assert (expected.topk_prompt_logprobs, found.topk_prompt_logprobs) != (None, None)
    ours, theirs = expected.topk_prompt_logprobs, found.topk_prompt_logprobs
    assert ours is not None
    assert theirs is not None
    assert theirs.token_ids.tolist() == ours.token_ids.tolist()
    assert np.allclose(theirs.logprobs, ours.logprobs, atol=TOLERANCE)
    assert [value is None for value in found.prompt_logprobs or ()] == [
        value is None for value in expected.prompt_logprobs or ()
    ]


async def test_a_seed_repeats_its_samples_alone_and_among_others(server: SamplingServer) -> None:
    def ask(seed: int | None, num_samples: int = 1) -> SampleRequest:
        params = SamplingParams(max_tokens=16, seed=seed, stop=())
        return SampleRequest(prompt=PROMPT, params=params, num_samples=num_samples)

    alone = await server.generate(MODEL, ask(5))
    others = [server.generate(MODEL, ask(None)) for _ in range(8)]
    among, *_ = await asyncio.gather(server.generate(MODEL, ask(5)), *others)
    assert among.sequences == alone.sequences
    first, again, next_to_it = await asyncio.gather(
        *(server.generate(MODEL, ask(seed, 4)) for seed in (5, 5, 6))
    )
    assert first.sequences == again.sequences
    texts = [tuple(each.tokens) for each in (*first.sequences, *next_to_it.sequences)]
    assert len(set(texts)) == 8


@pytest.mark.parametrize("stop", [(), ("e",), None], ids=str)
async def test_who_wants_no_log_probabilities_gets_the_same_tokens_whole_and_streamed(
    server: SamplingServer, stop: tuple[str, ...] | None
) -> None:
    params = SamplingParams(max_tokens=16, seed=5, stop=stop)
    request = SampleRequest(prompt=PROMPT, params=params)
    without = replace(request, without_logprobs=True)
    told, spared = [
        (await server.generate(MODEL, each)).sequences[0] for each in (request, without)
    ]
    assert (spared.tokens, spared.stop_reason) == (told.tokens, told.stop_reason)
    assert (len(told.logprobs), list(spared.logprobs)) == (len(told.tokens), [])
    news = [each async for each in server.stream(MODEL, without)]
    streamed = [each for each in news if isinstance(each, StreamedToken)]
    assert [each.token for each in streamed] == list(told.tokens)
    assert {each.logprob for each in streamed} == {None}
    assert streamed[-1].stop_reason == told.stop_reason


async def test_greedy_samples_are_the_engines_however_many_are_asked_for(
    server: SamplingServer,
) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0, stop=())
    request = SampleRequest(prompt=PROMPT, params=params, num_samples=3)
    generator = Generator.load(TINY)
    generator.submit(request)
    while not (finished := generator.step()):
        pass
    assert not isinstance(finished[0].result, InvalidInput)
    expected = [list(each.tokens) for each in finished[0].result.sequences]
    output = await server.generate(MODEL, request)
    assert [list(each.tokens) for each in output.sequences] == expected


async def test_a_stop_string_ends_a_sample_with_its_token_and_its_likeliest(
    server: SamplingServer,
) -> None:
    free = SampleRequest(
        prompt=PROMPT, params=SamplingParams(max_tokens=40, seed=5, stop=()), topk_sample_logprobs=2
    )
    whole = (await server.generate(MODEL, free)).sequences[0]
    generator = Generator.load(TINY)
    assert generator.tokenizer is not None
    pieces = [generator.tokenizer.decode([token]).strip() for token in whole.tokens]
    word = next(piece for piece in pieces[3:] if piece.isalpha())
    params = SamplingParams(max_tokens=40, seed=5, stop=(word,))
    stopped = (await server.generate(MODEL, request := replace_params(free, params))).sequences[0]
    assert stopped.stop_reason == "stop"
    assert list(stopped.tokens) == list(whole.tokens[: len(stopped.tokens)])
    assert word in generator.tokenizer.decode(list(stopped.tokens))
    assert word not in generator.tokenizer.decode(list(stopped.tokens[:-1]))
    assert stopped.topk_logprobs is not None
    assert whole.topk_logprobs is not None
    kept = whole.topk_logprobs.token_ids[: len(stopped.tokens)]
    assert stopped.topk_logprobs.token_ids.tolist() == kept.tolist()
    assert await read_stream(server, request) == (list(stopped.tokens), "stop")


def replace_params(request: SampleRequest, params: SamplingParams) -> SampleRequest:
    return SampleRequest(
        prompt=request.prompt, params=params, topk_sample_logprobs=request.topk_sample_logprobs
    )


async def read_stream(
    server: SamplingServer, request: SampleRequest
) -> tuple[list[int], str | None]:
    said = [each async for each in server.stream(MODEL, request)]
    tokens = [each for each in said if isinstance(each, StreamedToken)]
    assert isinstance(said[-1], StreamedUsage)
    return [each.token for each in tokens], tokens[-1].stop_reason


async def test_the_end_token_and_stop_tokens_end_a_sample_unless_nothing_may(
    server: SamplingServer,
) -> None:
    async def ask(stop: tuple[int, ...] | None) -> SampledSequence:
        params = SamplingParams(max_tokens=60, seed=11, stop=stop)
        return (
            await server.generate(MODEL, SampleRequest(prompt=PROMPT, params=params))
        ).sequences[0]

    endless, ended = await ask(()), await ask(None)
    assert (len(endless.tokens), endless.stop_reason) == (60, "length")
    assert EOS in endless.tokens
    end = list(endless.tokens).index(EOS) + 1
    assert (list(ended.tokens), ended.stop_reason) == (list(endless.tokens[:end]), "stop")
    token = endless.tokens[1]
    by_id = await ask((token,))
    until = list(endless.tokens).index(token) + 1
    assert (list(by_id.tokens), by_id.stop_reason) == (list(endless.tokens[:until]), "stop")


async def test_a_stream_has_the_tokens_of_the_whole_answer(server: SamplingServer) -> None:
    params = SamplingParams(max_tokens=24, seed=3, stop=(), temperature=0.8)
    request = SampleRequest(prompt=PROMPT, params=params)
    whole = (await server.generate(MODEL, request)).sequences[0]
    assert await read_stream(server, request) == (list(whole.tokens), "length")


async def test_a_prompt_that_was_read_before_is_taken_from_the_cache(
    server: SamplingServer,
) -> None:
    prompt = make_prompts(1, 300)[0]
    request = SampleRequest(prompt=prompt, params=SamplingParams(max_tokens=1))
    await server.generate(MODEL, request)
    assert (await server.generate(MODEL, request)).prompt_cache_hit_tokens == 256


@pytest.mark.parametrize(
    ("prompt", "text"),
    [([1, 5000], "out of vocabulary"), ([5] * 600, "longer than the maximum model length")],
)
async def test_a_prompt_that_cannot_be_read_is_refused(
    server: SamplingServer, prompt: list[int], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        await server.generate(
            MODEL, SampleRequest(prompt=prompt, params=SamplingParams(max_tokens=1))
        )


async def test_a_model_that_is_not_there_is_missing(server: SamplingServer) -> None:
    with pytest.raises(ModelMissing, match="other"):
        await server.generate("other", SampleRequest(prompt=[1], params=SamplingParams()))


async def test_the_server_says_what_it_is_and_how_it_does(server: SamplingServer) -> None:
    before = await server.read_stats()
    params = SamplingParams(max_tokens=20, stop=())
    await server.generate(MODEL, SampleRequest(prompt=PROMPT, params=params, num_samples=2))
    after = await server.read_stats()
    assert after.sampled_tokens - before.sampled_tokens == 40
    assert after.prompt_tokens > before.prompt_tokens
    assert after.ttft.since(before.ttft).count == 2
    assert (after.running, after.waiting, after.kv_cache_share) == (0, 0, 0.0)
    assert after.describe()["tpot_p50"] > 0
    facts = await server.describe()
    assert (facts.engine, facts.version, facts.has_extension) == ("vllm", "0.32.0", True)
    assert not facts.warning
