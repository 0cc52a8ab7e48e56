"""Every family against transformers and peft alone: training datum by datum, sampling greedily."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.reference import (
    load_peft,
    read_gradients,
    read_peft_gradients,
    sum_loss,
)
from tests.training.engine.rows import make_datum
from tests.training.engine.shapes import FAMILIES, save_model
from training.engine.core import Engine
from training.engine.generate import Generator, Limits
from training.types import (
    Datum,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
    SampleOutput,
    SampleRequest,
    SamplingParams,
)

Stir = Callable[[Engine, str], None]
SPECS = {
    "everything": LoraSpec(rank=3, alpha=5.0, train_unembed=True, train_embed=True, seed=1),
    "attention": LoraSpec(rank=4, train_mlp=False, seed=2),
    "mlp": LoraSpec(rank=2, train_attn=False, seed=3),
}
GREEDY = SamplingParams(max_tokens=20, temperature=0)


@pytest.fixture(params=FAMILIES)
def family_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_model(request.param, tmp_path / "model")


def make_branches(seed: int) -> list[Datum]:
    """Two that go on after 21 tokens, one of them after 40, one that stops at 40, and a loner."""
    trunk = make_datum(70, seed=seed)
    branches = []
    for start, length in ((21, 50), (40, 64), (40, 40), (0, 33)):
        other = make_datum(length, seed=seed + start)
        tokens = np.concatenate([trunk.tokens[:start], other.tokens[start:]])
        branches.append(replace(other, tokens=tokens))
    return branches


def train(
    path: Path, data: Mapping[str, Sequence[Datum]], stir: Stir, folder: Path
) -> tuple[Engine, dict[str, ForwardBackwardOutput]]:
    """Several runs of different shapes in the same pass; their adapters are saved in a folder."""
    engine = Engine.load(path)
    for run, spec in SPECS.items():
        engine.create_adapter(run, spec)
        stir(engine, run)
        engine.save_weights(run, folder / run, optimizer=False)
    answers = engine.forward_backward({run: ForwardBackward(data=data[run]) for run in SPECS})
    outputs = {
        run: answer for run, answer in answers.items() if isinstance(answer, ForwardBackwardOutput)
    }
    return engine, outputs


def test_tenants_with_shared_prefixes_are_trained_as_peft_trains_each_datum_alone(
    family_path: Path, stir: Stir, tmp_path: Path
) -> None:
    data = {run: make_branches(seed) for seed, run in enumerate(SPECS)}
    engine, outputs = train(family_path, data, stir, tmp_path)
    for run in SPECS:
        model = load_peft(family_path, tmp_path / run)
        loss, logprobs = sum_loss(model, data[run])
        loss.backward()
        assert outputs[run].metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
        for ours, alone in zip(outputs[run].logprobs, logprobs, strict=True):
            np.testing.assert_allclose(ours, alone.numpy(), atol=1e-5)
        expected = read_peft_gradients(model)
        gradients = read_gradients(engine, run)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            theirs = expected[name]
            atol = 1e-5 * max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(gradient, theirs, atol=atol, rtol=0)


def sample(
    generator: Generator, requests: Sequence[tuple[SampleRequest, str | None]]
) -> list[SampleOutput]:
    tickets = [
        generator.submit(request, adapter=adapter, ignore_end=True) for request, adapter in requests
    ]
    done: dict[int, SampleOutput] = {}
    while len(done) < len(tickets):
        for finished in generator.step():
            assert isinstance(finished.result, SampleOutput), finished.result
            done[finished.ticket] = finished.result
    return [done[ticket] for ticket in tickets]


def score(model: torch.nn.Module, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, by a plain forward."""
    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    chosen: list[float] = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    return chosen


def test_greedy_samples_and_all_logprobs_are_those_of_transformers(family_path: Path) -> None:
    generator = Generator.load(family_path, limits=Limits(prompt_tokens=31))
    reference: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        family_path, dtype=torch.float32
    )
    prompts = [make_datum(length, seed=7).tokens.tolist() for length in (5, 90)]
    requests = [SampleRequest(prompt=each, params=GREEDY, prompt_logprobs=True) for each in prompts]
    outputs = sample(generator, [(request, None) for request in requests])
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        sequence = output.sequences[0]
        assert sequence.tokens == expected[0, len(prompt) :].tolist()
        assert output.prompt_logprobs is not None
        told = [*output.prompt_logprobs[1:], *sequence.logprobs]
        assert told == pytest.approx(score(reference, expected[0].tolist()), abs=1e-5)


def test_an_adapter_that_was_trained_here_is_sampled_as_peft_does(
    family_path: Path, stir: Stir, tmp_path: Path
) -> None:
    engine = Engine.load(family_path)
    engine.create_adapter("run", SPECS["everything"])
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    generator = Generator.load(family_path)
    generator.load_adapter("saved", tmp_path / "saved")
    prompt = make_datum(40, seed=5).tokens.tolist()
    request = SampleRequest(prompt=prompt, params=GREEDY)
    (output,) = sample(generator, [(request, "saved")])
    tokens = [*prompt, *output.sequences[0].tokens]
    model = load_peft(family_path, tmp_path / "saved")
    told = pytest.approx(score(model, tokens)[len(prompt) - 1 :], abs=1e-5)
    assert output.sequences[0].logprobs == told
