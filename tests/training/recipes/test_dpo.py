"""Direct preference optimization: its numbers by hand, and what it does to the tiny model."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.recipes.learning import TINY, LocalModel
from tests.training.recipes.pairs import differences_over_sums, make_pair
from tests.training.recipes.test_sft import FakeModel
from training.data.pairs import encode_pair
from training.data.tokenizer import ChatTokenizer
from training.engine.core import Engine
from training.errors import InvalidInput
from training.recipes import dpo
from training.recipes.dpo import DpoConfig, Prepared
from training.recipes.steps import Order

TOKENIZER = ChatTokenizer.load(TINY)
CONFIG = {
    "rank": 8,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "batch_size": 8,
    "steps": 20,
    "held_out_share": 0.3,
}


def configure(**settings: Any) -> DpoConfig:
    return DpoConfig.from_dict({**CONFIG, **settings})


def prepared_for(config: DpoConfig) -> Prepared:
    return dpo.prepare(differences_over_sums(), TOKENIZER, config)


def open_model(config: DpoConfig) -> LocalModel:
    engine = Engine.load(TINY)
    engine.create_adapter("run", config.lora)
    return LocalModel(engine, "run")


def test_the_numbers_of_two_pairs_are_those_of_the_paper() -> None:
    # rewards 0.5 * (-1 + 3), 0.5 * (-4 + 2) and 0.5 * (-2 + 2), 0.5 * (-1 + 2)
    found = dpo.weigh([-1.0, -4.0, -2.0, -1.0], [(-3.0, -2.0), (-2.0, -2.0)], beta=0.5)
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(0.5))) / 2
    assert found.metrics == {
        "dpo/loss": pytest.approx(expected),
        "dpo/accuracy": 0.5,
        "dpo/margin": 0.75,
        "dpo/chosen_reward": 0.5,
        "dpo/rejected_reward": -0.25,
    }


def test_the_push_of_a_pair_is_what_autograd_finds() -> None:
    sums, before = [-3.0, -2.5, -900.0, -1.0], [(-3.5, -2.0), (-1.0, -1.0)]
    given = torch.tensor(sums, dtype=torch.float64, requires_grad=True)
    rewards = 0.1 * (given.reshape(-1, 2) - torch.tensor(before, dtype=torch.float64))
    loss = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
    loss.backward()
    assert given.grad is not None
    found = dpo.weigh(sums, before, beta=0.1)
    assert found.metrics["dpo/loss"] == pytest.approx(loss.item())
    pushes = [sign * push for push in found.pushes for sign in (-1, 1)]
    assert pushes == pytest.approx(given.grad.tolist(), rel=1e-12)


def test_preferences_of_pairs_never_trained_on_turn_round() -> None:
    config = configure()
    model, prepared = open_model(config), prepared_for(config)
    reference = dpo.measure_reference(model, prepared, config)
    first = dpo.measure_first(prepared.held_out, reference=reference)
    assert first["held_out/preferred"] < 0.1
    steps = list(dpo.train(model, prepared, config, reference=reference))
    # The first step sees the weights that the reference was measured with.
    assert steps[0].metrics["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0].metrics["dpo/margin"] == pytest.approx(0, abs=1e-4)
    assert steps[-1].metrics["loss"] == steps[-1].metrics["dpo/loss"] < 0.4
    measured = dpo.measure(model, prepared.held_out, reference=reference, beta=config.beta)
    assert measured["held_out/accuracy"] > 0.9
    assert measured["held_out/preferred"] > 0.8
    assert dpo.measure_first([], reference={}) == {}


def test_a_step_asks_for_its_log_probabilities_before_it_learns() -> None:
    config = configure(steps=2, batch_size=3)
    prepared = prepared_for(config)
    model = PairModel()
    reference = {pair.number: (-1.0, -1.0) for pair in prepared.train}
    steps = dpo.train(model, prepared, config, reference=reference)
    (first, second) = list(steps)
    assert (first.number, second.number, first.is_settled) == (1, 2, False)
    assert len(first.batch.rows) == 3
    assert first.row_losses.keys() == set(first.batch.rows)
    assert np.mean(list(first.row_losses.values())) == pytest.approx(first.metrics["loss"])
    forward, gradient = model.data[:2]
    assert len(forward) == len(gradient) == 6
    for place, (asked, learned) in enumerate(zip(forward, gradient, strict=True)):
        assert set(asked.inputs["weights"]) == {0.0, 1.0}
        sign = np.sign(learned.inputs["weights"].sum())
        assert sign == (1 if place % 2 == 0 else -1)


def test_only_pairs_that_are_looked_at_are_measured_before() -> None:
    config = configure(steps=2, batch_size=3, held_out_share=0)
    prepared = prepared_for(config)
    reference = dpo.measure_reference(PairModel(), prepared, config)
    rows = {pair.number for batch in dpo.list_batches(prepared, config) for pair in batch}
    assert reference.keys() == rows
    assert len(rows) == 6


def test_a_run_taken_up_at_a_step_goes_on_with_the_same_pairs() -> None:
    config = configure(steps=4, batch_size=3)
    prepared = prepared_for(config)
    reference = {pair.number: (0.0, 0.0) for pair in prepared.train}
    whole = list(dpo.train(PairModel(), prepared, config, reference=reference))
    later = list(dpo.train(PairModel(), prepared, config, reference=reference, start=2))
    assert [step.batch.rows for step in later] == [step.batch.rows for step in whole[2:]]


def test_a_steered_learning_rate_holds_from_the_next_step_on() -> None:
    config = configure(steps=3, batch_size=3)
    model, prepared = PairModel(), prepared_for(config)
    reference = {pair.number: (0.0, 0.0) for pair in prepared.train}

    def steer(number: int) -> Order:
        return Order(learning_rate=0.5 if number > 1 else None)

    list(dpo.train(model, prepared, config, reference=reference, steer=steer))
    assert [adam.learning_rate for adam in model.adams] == [1e-3, 0.5, 0.5]


def test_a_longer_answer_is_cut_and_a_pair_without_a_difference_is_left_out() -> None:
    short = make_pair(1, "Say it.", "one", "two")
    long = make_pair(2, "Say it.", "one two three four five", "one two three four six")
    also_long = make_pair(3, "Say it.", "two two three four five", "one two three four six")
    sides = encode_pair(long, TOKENIZER).sides
    shared = next(
        at
        for at, (a, b) in enumerate(zip(*(side.tokens for side in sides), strict=False))
        if a != b
    )
    config = configure(max_length=shared, held_out_share=0)
    prepared = dpo.prepare([short, long, also_long], TOKENIZER, config)
    assert [pair.number for pair in prepared.train] == [1, 3]
    assert (list(prepared.dropped), list(prepared.truncated)) == ([2], [3])
    with pytest.raises(InvalidInput, match="none of the 0 pairs is left"):
        dpo.prepare([long], TOKENIZER, config)


def test_a_row_that_is_no_pair_is_named() -> None:
    (row,) = [make_pair(7, "Why?", "So.", "No.")]
    broken = type(row)(number=7, messages=row.messages)
    with pytest.raises(InvalidInput, match="row 7 is no preference pair"):
        dpo.prepare([broken], TOKENIZER, configure())


@pytest.mark.parametrize("beta", [0, -1, "much", None, True])
def test_a_beta_that_is_no_positive_number_is_refused(beta: Any) -> None:
    with pytest.raises(InvalidInput, match="beta is "):
        configure(beta=beta)


class PairModel(FakeModel):
    """Every token of an answer has the log-probability -1."""

    def forward_backward(self, data: Any, loss_fn: str, **options: Any) -> Any:
        answer = super().forward_backward(data, loss_fn, **options)
        logprobs = [np.full(len(datum.tokens), -1.0, np.float32) for datum in data]
        answer.value = type(answer.value)(logprobs=logprobs, metrics=answer.value.metrics)
        return answer


def test_pairs_with_one_prompt_stand_on_one_side_of_the_split() -> None:
    rows = [
        make_pair(2 * place + side, f"Why {place}?", answer, "No.")
        for place in range(30)
        for side, answer in enumerate(("So.", "Thus."))
    ]
    prepared = dpo.prepare(rows, TOKENIZER, configure())
    asked = [{pair.number // 2 for pair in part} for part in (prepared.train, prepared.held_out)]
    assert min(map(len, asked)) > 3
    assert not asked[0] & asked[1]
    # As runs that were begun before go on to do.
    by_row = dpo.prepare(rows, TOKENIZER, configure(held_out_by="row"))
    parts = [{pair.number // 2 for pair in part} for part in (by_row.train, by_row.held_out)]
    assert parts[0] & parts[1]
