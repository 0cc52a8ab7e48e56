"""The reward model: what it is asked, how it is measured, and that it learns at all."""

from typing import Any

import numpy as np
import pytest

from tests.training.recipes.learning import TINY, LocalModel
from tests.training.recipes.pairs import differences_over_sums, make_pair
from training.data.tokenizer import ChatTokenizer
from training.engine.core import Engine
from training.errors import InvalidInput
from training.recipes import reward_model
from training.recipes.reward_model import Prepared, RewardModelConfig

TOKENIZER = ChatTokenizer.load(TINY)
CONFIG = {
    "rank": 16,
    "learning_rate": 3e-3,
    "schedule": "constant",
    "batch_size": 8,
    "steps": 6,
    "held_out_share": 0.3,
}


def configure(**settings: Any) -> RewardModelConfig:
    return RewardModelConfig.from_dict({**CONFIG, **settings})


def prepared_for(config: RewardModelConfig) -> Prepared:
    return reward_model.prepare(differences_over_sums(), TOKENIZER, config)


def open_model(config: RewardModelConfig) -> LocalModel:
    engine = Engine.load(TINY)
    engine.create_adapter("run", config.lora)
    return LocalModel(engine, "run")


def test_each_pair_is_asked_in_both_orders_with_the_right_label() -> None:
    config = configure(held_out_share=0)
    row = make_pair(1, "What is 3 - 2?", "1", "5")
    (pair,) = reward_model.prepare([row], TOKENIZER, config).train
    texts = [TOKENIZER.decode(order.example.tokens.tolist()) for order in pair.orders]
    assert "A: 1\n\nB: 5\n\n" in texts[0]
    assert "A: 5\n\nB: 1\n\n" in texts[1]
    for order, right, wrong in zip(pair.orders, "AB", "BA", strict=True):
        learned = order.example.tokens[order.example.mask].tolist()
        assert TOKENIZER.decode(learned) == f"{right}<|im_end|>"
        assert order.example.tokens[order.place + 1] == learned[0]
        assert TOKENIZER.decode([order.wrong]) == wrong


def test_a_step_learns_from_both_orders_of_its_pairs() -> None:
    config = configure(steps=1, batch_size=3)
    (step,) = reward_model.train(open_model(config), prepared_for(config), config)
    assert len(step.batch.data) == 6
    assert step.batch.rows[::2] == step.batch.rows[1::2]
    assert step.row_losses.keys() == set(step.batch.rows)
    mean = sum(step.row_losses.values()) / len(step.row_losses)
    assert mean == pytest.approx(step.metrics["loss"], rel=1e-4)  # each has as many tokens
    assert step.metrics["comparison/accuracy"] == 0.0  # it has never said A or B


def test_held_out_pairs_are_measured_as_a_step_is() -> None:
    config = configure(steps=1, held_out_share=0, batch_size=90, learning_rate=1e-9)
    model, prepared = open_model(config), prepared_for(config)
    measured = reward_model.measure(model, prepared.train)
    (step,) = reward_model.train(model, prepared, config)
    assert measured["held_out_loss"] == pytest.approx(step.metrics["loss"], rel=1e-4)
    assert 0 <= measured["held_out/accuracy"] <= 1
    assert reward_model.measure(model, []) == {}


def test_its_loss_on_pairs_never_trained_on_falls_to_that_of_two_labels() -> None:
    """In six steps it learns to say A or B at all; e2e tests see it choose well."""
    config = configure()
    model, prepared = open_model(config), prepared_for(config)
    before = reward_model.measure(model, prepared.held_out)["held_out_loss"]
    losses = [step.metrics["loss"] for step in reward_model.train(model, prepared, config)]
    assert losses[-1] < losses[0] / 4
    assert reward_model.measure(model, prepared.held_out)["held_out_loss"] < before / 4


def test_an_answer_is_right_where_its_label_is_likelier_than_the_other() -> None:
    (pair, *_) = prepared_for(configure()).train
    order = pair.orders[0]
    logprobs = np.zeros((len(order.example.tokens) - 1, 2), np.float32)
    logprobs[order.place] = (-3.0, -4.0)
    assert reward_model.is_right(order, logprobs)
    logprobs[order.place] = (-3.0, -3.0)
    assert not reward_model.is_right(order, logprobs)


def test_pairs_that_are_too_long_are_left_out_and_counted() -> None:
    short, long = make_pair(1, "Why?", "So.", "No."), make_pair(2, "Why?", "So. " * 60, "No.")
    config = configure(max_length=60, held_out_share=0)
    prepared = reward_model.prepare([short, long], TOKENIZER, config)
    assert [pair.number for pair in prepared.train] == [1]
    assert list(prepared.dropped) == [2]
    with pytest.raises(InvalidInput, match="none of the 0 pairs is left"):
        reward_model.prepare([long], TOKENIZER, config)


def test_both_orders_of_a_pair_stand_on_the_same_side_of_the_split() -> None:
    prepared = prepared_for(configure())
    numbers = [{pair.number for pair in part} for part in (prepared.train, prepared.held_out)]
    assert not numbers[0] & numbers[1]
    assert len(numbers[0]) + len(numbers[1]) == 90


def test_pairs_with_one_prompt_stand_on_one_side_of_the_split() -> None:
    rows = [
        make_pair(2 * place + side, f"Why {place}?", answer, "No.")
        for place in range(30)
        for side, answer in enumerate(("So.", "Thus."))
    ]
    prepared = reward_model.prepare(rows, TOKENIZER, configure())
    asked = [{pair.number // 2 for pair in part} for part in (prepared.train, prepared.held_out)]
    assert min(map(len, asked)) > 3
    assert not asked[0] & asked[1]
    # As runs that were begun before go on to do.
    by_row = reward_model.prepare(rows, TOKENIZER, configure(held_out_by="row"))
    parts = [{pair.number // 2 for pair in part} for part in (by_row.train, by_row.held_out)]
    assert parts[0] & parts[1]
