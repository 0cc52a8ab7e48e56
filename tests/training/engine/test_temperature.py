"""A policy loss at the temperature that its samples were drawn at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

SPEC = LoraSpec(rank=4, train_unembed=True)


@pytest.fixture
def engine(random_paths: dict[str, Path]) -> Engine:
    engine = Engine.load(random_paths["llama"])
    for name in ("cold", "hot"):
        engine.create_adapter(name, SPEC)
        torch.nn.init.normal_(engine.adapters.by_run[name].values, std=0.02)
    return engine


def ask(data: list[Datum], temperature: float, loss_fn: str = "ppo") -> ForwardBackward:
    return ForwardBackward(data=data, loss_fn=loss_fn, config={"temperature": temperature})


def learn(engine: Engine, requests: dict[str, ForwardBackward]) -> dict[str, ForwardBackwardOutput]:
    outputs = engine.forward_backward(requests)
    assert all(isinstance(each, ForwardBackwardOutput) for each in outputs.values())
    return outputs  # type: ignore[return-value]


def test_runs_of_one_pass_have_each_its_own_temperature(random_paths: dict[str, Path]) -> None:
    engine = Engine.load(random_paths["llama"])  # adapters that were not trained change nothing
    for name in ("cold", "hot"):
        engine.create_adapter(name, SPEC)
    data = make_data(12, 20)
    outputs = learn(engine, {"cold": ask(data, 0.7), "hot": ask(data, 1.3)})
    model = AutoModelForCausalLM.from_pretrained(random_paths["llama"])
    for name, temperature in (("cold", 0.7), ("hot", 1.3)):
        for datum, told in zip(data, outputs[name].logprobs, strict=True):
            with torch.no_grad():
                logits = model(torch.from_numpy(datum.tokens)[None]).logits[0] / temperature
            targets = torch.from_numpy(datum.inputs["target_tokens"])[:, None]
            expected = logits.log_softmax(1).gather(1, targets)[:, 0]
            torch.testing.assert_close(torch.from_numpy(told), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_gradient_is_that_of_the_tempered_policy(engine: Engine, temperature: float) -> None:
    """Along it the loss grows as steeply as its length says, the head's adapter included."""
    request = ask(make_data(12, 20), temperature, loss_fn="reinforce")
    learn(engine, {"hot": request})
    adapter = engine.adapters.by_run["hot"]
    gradient, start = adapter.gradients.clone(), adapter.values.detach().clone()
    length = float(torch.linalg.vector_norm(gradient))
    losses = []
    for away in (0.01, -0.01):
        with torch.no_grad():
            adapter.values.copy_(start + gradient * (away / length))
        output = learn(engine, {"hot": replace(request, forward_only=True)})["hot"]
        losses.append(output.metrics["loss:sum"])
    assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=0.01)


def test_what_was_drawn_at_a_temperature_has_the_ratio_one_there(engine: Engine) -> None:
    data = make_data(12, 20)
    told = learn(engine, {"cold": replace(ask(data, 0.7), forward_only=True)})["cold"]
    drawn = [
        replace(each, inputs={**each.inputs, "logprobs": logprobs})
        for each, logprobs in zip(data, told.logprobs, strict=True)
    ]
    metrics = learn(engine, {"cold": ask(drawn, 0.7)})["cold"].metrics
    assert metrics["ratio:mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl_sample_train_k3:mean"] == pytest.approx(0, abs=1e-6)
    apart = learn(engine, {"cold": ask(drawn, 1.0)})["cold"].metrics
    assert apart["kl_sample_train_k3:mean"] > 0.001
    assert np.isfinite(apart["ratio:mean"])
