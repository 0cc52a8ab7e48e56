"""The built-in sampler serves mixtures of experts as they were trained, and tells their routes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from training.engine.core import Engine
from training.engine.generate import Generator, Limits
from training.errors import InvalidInput
from training.types import (
    Datum,
    ForwardBackward,
    ForwardBackwardOutput,
    IntArray,
    LoraSpec,
    SampleOutput,
    SampleRequest,
    SamplingParams,
)

Stir = Callable[[Engine, str], None]
SPECS = {
    "one": LoraSpec(rank=3, alpha=6.0, train_embed=True),
    "three": LoraSpec(rank=1, train_attn=False),
}
PROMPTS = [[(7 * place + 3 * index) % 97 for place in range(3 + index)] for index in range(4)]
LONG = [(11 * place + 5) % 97 for place in range(40)]
DRAWN = SamplingParams(max_tokens=9, seed=1, stop=())


@pytest.fixture
def engine(mixture: Path, stir: Stir) -> Engine:
    engine = Engine.load(mixture)
    for run, spec in SPECS.items():
        engine.create_adapter(run, spec)
        stir(engine, run)
    return engine


@pytest.fixture
def generator(engine: Engine, tmp_path: Path) -> Generator:
    """With the engine's adapters under the names of their runs."""
    generator = Generator.load(engine.path, limits=Limits(prompt_tokens=16))
    for run in SPECS:
        engine.save_weights(run, tmp_path / run, optimizer=False)
        generator.load_adapter(run, tmp_path / run)
    return generator


def sample(
    generator: Generator, *requests: tuple[SampleRequest, str | None]
) -> Sequence[SampleOutput]:
    tickets = [generator.submit(request, adapter=adapter) for request, adapter in requests]
    done: dict[int, SampleOutput] = {}
    while not generator.is_idle:
        for finished in generator.step():
            assert isinstance(finished.result, SampleOutput), finished.result
            done[finished.ticket] = finished.result
    return [done[ticket] for ticket in tickets]


def follow(
    engine: Engine, run: str, tokens: Sequence[int], routes: IntArray | None = None
) -> ForwardBackwardOutput:
    """What the trainer makes of a sequence."""
    ids = np.array(tokens, np.int64)
    datum = Datum(tokens=ids[:-1], inputs={"target_tokens": ids[1:]}, routes=routes)
    request = ForwardBackward(data=[datum], forward_only=True, with_routes=True)
    output = engine.forward_backward({run: request})[run]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def test_every_runs_experts_are_sampled_as_they_were_trained(
    engine: Engine, generator: Generator
) -> None:
    requests = [
        (SampleRequest(prompt=prompt, params=DRAWN, num_samples=2), run)
        for prompt in PROMPTS
        for run in SPECS
    ]
    outputs = sample(generator, *requests)
    for (request, run), output in zip(requests, outputs, strict=True):
        for sequence in output.sequences:
            told = follow(engine, run, [*request.prompt, *sequence.tokens]).logprobs[0]
            np.testing.assert_allclose(
                sequence.logprobs, told[len(request.prompt) - 1 :], atol=2e-5
            )


def test_routes_of_samples_are_those_that_training_finds(
    engine: Engine, generator: Generator
) -> None:
    """Prompts of several steps, one that borrows another's beginning, and several samples each."""
    wishes = [
        SampleRequest(prompt=prompt, params=DRAWN, num_samples=2, with_routes=True)
        for prompt in (LONG, [*LONG, 4, 5], PROMPTS[0])
    ]
    outputs = sample(generator, *((wish, "one") for wish in wishes))
    assert outputs[1].prompt_cache_hit_tokens == len(LONG)
    for wish, output in zip(wishes, outputs, strict=True):
        assert output.prompt_routes is not None
        for sequence in output.sequences:
            assert sequence.routes is not None
            routes = np.concatenate([output.prompt_routes, sequence.routes])
            told = follow(engine, "one", [*wish.prompt, *sequence.tokens]).routes
            assert told is not None
            np.testing.assert_array_equal(routes, told[0])


def test_samples_replay_where_the_trainers_router_would_go_elsewhere(
    engine: Engine, generator: Generator
) -> None:
    request = SampleRequest(prompt=PROMPTS[1], params=DRAWN, with_routes=True)
    (output,) = sample(generator, (request, "three"))
    (sequence,) = output.sequences
    assert output.prompt_routes is not None
    assert sequence.routes is not None
    routes = np.concatenate([output.prompt_routes, sequence.routes])
    tokens = [*request.prompt, *sequence.tokens]
    for name, parameter in engine.model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data = parameter.data.flip(0)  # each expert has another one's scores
    free, replayed = (follow(engine, "three", tokens, each) for each in (None, routes))
    assert free.routes is not None
    assert replayed.routes is not None
    assert (np.sort(free.routes[0]) != np.sort(routes)).any()
    np.testing.assert_array_equal(replayed.routes[0], routes)


def test_who_asks_for_routes_borrows_from_who_has_them_alone(generator: Generator) -> None:
    silent = SampleRequest(prompt=LONG, params=DRAWN)
    asking = SampleRequest(prompt=[*LONG, 1], params=DRAWN, with_routes=True)
    first, second = sample(generator, (silent, None), (asking, None))
    assert first.prompt_routes is None
    assert first.sequences[0].routes is None
    assert second.prompt_cache_hit_tokens == 0
    assert second.prompt_routes is not None
    assert len(second.prompt_routes) == len(LONG)


def test_a_prompt_that_is_read_again_for_more_samples_has_its_routes_once(
    engine: Engine, mixture: Path
) -> None:
    narrow = Generator.load(mixture, limits=Limits(sequences=2))
    request = SampleRequest(prompt=LONG, params=DRAWN, num_samples=5, with_routes=True)
    (output,) = sample(narrow, (request, None))
    assert output.prompt_routes is not None
    assert len(output.prompt_routes) == len(LONG) - 1
    assert [len(each.routes) for each in output.sequences if each.routes is not None] == [9] * 5


def test_a_dense_model_tells_no_routes(tiny_path: Path) -> None:
    generator = Generator.load(tiny_path)
    request = SampleRequest(prompt=[1, 2], params=DRAWN, with_routes=True)
    with pytest.raises(InvalidInput, match="this model is dense"):
        generator.submit(request)


def test_an_expert_without_its_weights_is_named(engine: Engine, tmp_path: Path) -> None:
    adapter = engine.adapters.by_run["three"]
    name = next(name for name in adapter.tensors if ".experts.2." in name)
    lost = adapter.tensors.pop(name)
    engine.save_weights("three", tmp_path / "partial", optimizer=False)
    generator = Generator.load(engine.path)
    assert torch.is_tensor(lost)
    with pytest.raises(InvalidInput, match=f"{name} is missing"):
        generator.load_adapter("three", tmp_path / "partial")
