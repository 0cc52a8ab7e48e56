"""The SFT recipe on the real engine and the tiny model: it learns what it has not seen."""

from collections.abc import Iterator

import pytest

from tests.training.recipes.learning import TINY, LocalModel
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.engine.core import Engine
from training.recipes.sft import held_out_loss, prepare, train
from training.recipes.sft_config import SftConfig


def differences() -> Iterator[Row]:
    """What the tiny model was not taught: it knows sums only."""
    pairs = [(left, right) for left in range(10) for right in range(10)]
    for number, (left, right) in enumerate(pairs, start=1):
        question = {"role": "user", "content": f"What is {left} - {right}?"}
        answer = {"role": "assistant", "content": str(left - right)}
        yield Row(number=number, messages=[question, answer])


@pytest.mark.slow
def test_the_loss_of_rows_never_trained_on_falls() -> None:
    config = SftConfig.from_dict(
        {"rank": 8, "learning_rate": 5e-3, "steps": 30, "batch_size": 16, "held_out_share": 0.2}
    )
    engine = Engine.load(TINY)
    engine.create_adapter("run", config.lora)
    model = LocalModel(engine, "run")
    prepared = prepare(differences(), ChatTokenizer.load(TINY), config)
    before = held_out_loss(model, prepared.held_out)
    losses = [step.metrics["loss"] for step in train(model, prepared, config)]
    assert losses[0] == pytest.approx(before, rel=0.3)
    assert losses[-1] < losses[0] / 2
    assert held_out_loss(model, prepared.held_out) < before / 2


def test_a_steps_loss_is_the_mean_that_held_out_loss_reports() -> None:
    config = SftConfig.from_dict({"rank": 2, "steps": 1, "batch_size": 5, "held_out_share": 0})
    engine = Engine.load(TINY)
    engine.create_adapter("run", config.lora)
    model = LocalModel(engine, "run")
    prepared = prepare(list(differences())[:5], ChatTokenizer.load(TINY), config)
    measured = held_out_loss(model, prepared.train)
    (step,) = train(model, prepared, config)
    assert step.metrics["loss"] == pytest.approx(measured, rel=1e-5)
    assert step.metrics["grad_norm"] > 0
