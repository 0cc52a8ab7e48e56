"""The SFT recipe on a model that only remembers what it was asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.recipes.sft import Order, Prepared, Step, held_out_loss, prepare, train
from training.recipes.sft_config import SftConfig
from training.types import (
    AdamParams,
    CheckpointKind,
    Datum,
    ForwardBackwardOutput,
    OptimStepOutput,
    SavedWeights,
)


@dataclass
class Answer:
    """A future that writes down when it was waited for."""

    model: "FakeModel"
    name: str
    value: Any

    def result(self, timeout: float | None = None) -> Any:
        self.model.events.append(f"wait {self.name}")
        return self.value


@dataclass
class FakeModel:
    """Every weighted token costs 2 nats, less 0.1 for each optimizer step."""

    events: list[str] = field(default_factory=list)
    adams: list[AdamParams] = field(default_factory=list)
    data: list[Sequence[Datum]] = field(default_factory=list)
    configs: list[Mapping[str, float | str] | None] = field(default_factory=list)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        config: Mapping[str, float | str] | None = None,
        forward_only: bool = False,
    ) -> Answer:
        name = f"{'forward' if forward_only else 'gradient'} {len(self.data) + 1}"
        self.events.append(name)
        self.data.append(data)
        self.configs.append(config)
        weights = sum(float(datum.inputs["weights"].sum()) for datum in data)
        each = 2 - 0.1 * len(self.adams)
        logprobs = [np.where(datum.inputs["weights"] > 0, -each, 0.0) for datum in data]
        metrics = {"loss:sum": weights * each}
        return Answer(self, name, ForwardBackwardOutput(logprobs=logprobs, metrics=metrics))

    def optim_step(self, adam: AdamParams) -> Answer:
        self.adams.append(adam)
        name = f"update {len(self.adams)}"
        self.events.append(name)
        return Answer(self, name, OptimStepOutput(metrics={"grad_norm": 0.5}))

    def save_weights(
        self, name: str, *, kind: CheckpointKind, ttl_seconds: int | None = None
    ) -> "Answer":
        raise NotImplementedError(SavedWeights)

    def load_weights(self, path: str, *, optimizer: bool) -> "Answer":
        raise NotImplementedError


def sums(count: int) -> Iterator[Row]:
    for number in range(1, count + 1):
        question = {"role": "user", "content": f"What is {number % 10} + {number // 10}?"}
        answer = {"role": "assistant", "content": f"{number % 10 + number // 10}"}
        yield Row(number=number, messages=[question, answer])


QUIET = {"held_out_share": 0, "evaluate_every": 0, "batch_size": 4, "seed": 5}


def configure(**settings: Any) -> SftConfig:
    return SftConfig.from_dict({**QUIET, **settings})


def prepared_for(config: SftConfig, count: int = 24) -> Prepared:
    return prepare(sums(count), ChatTokenizer.load(Path("tests/assets/tiny-chatml-1m")), config)


def run(config: SftConfig, **options: Any) -> tuple[FakeModel, list[Step]]:
    model = FakeModel()
    return model, list(train(model, prepared_for(config), config, **options))


def test_a_step_reports_the_mean_loss_of_weighted_tokens() -> None:
    _, steps = run(configure(steps=3, schedule="constant", learning_rate=0.5))
    assert [step.number for step in steps] == [1, 2, 3]
    assert [step.metrics["loss"] for step in steps] == pytest.approx([2.0, 1.9, 1.8])
    assert [step.metrics["learning_rate"] for step in steps] == [0.5, 0.5, 0.5]
    assert steps[0].metrics["grad_norm"] == 0.5
    assert steps[0].metrics["num_tokens"] == steps[0].batch.num_tokens
    assert steps[0].metrics["num_weighted_tokens"] == steps[0].batch.num_weighted


def test_a_step_says_what_each_of_its_rows_cost() -> None:
    _, steps = run(configure(steps=2))
    for step, loss in zip(steps, (2.0, 1.9), strict=True):
        assert set(step.row_losses) == set(step.batch.rows)
        assert list(step.row_losses.values()) == pytest.approx([loss] * 4)


def test_only_weighted_positions_are_asked_for() -> None:
    model, _ = run(configure(steps=2))
    assert model.configs == [{"logprobs": "weighted"}] * 2


def test_the_next_step_is_submitted_before_the_last_one_is_waited_for() -> None:
    model, _ = run(configure(steps=3))
    assert model.events == [
        *("gradient 1", "update 1", "gradient 2", "update 2"),
        *("wait gradient 1", "wait update 1"),
        *("gradient 3", "update 3"),
        *("wait gradient 2", "wait update 2", "wait gradient 3", "wait update 3"),
    ]


def test_nothing_is_submitted_over_a_step_with_something_due() -> None:
    config = configure(steps=5, checkpoint_every=2)
    model, steps = run(config)
    assert [step.number for step in steps if step.is_settled] == [2, 4, 5]
    assert model.events.index("wait update 2") < model.events.index("gradient 3")
    assert model.events.index("gradient 4") < model.events.index("wait update 3")


def test_an_order_to_settle_lets_the_steps_under_way_end_first() -> None:
    model, steps = run(configure(steps=4), steer=lambda number: Order(settle=number == 3))
    assert [step.number for step in steps if step.is_settled] == [2, 4]
    assert model.events.index("wait update 2") < model.events.index("gradient 3")


def test_a_steered_learning_rate_holds_for_the_steps_submitted_after() -> None:
    def steer(number: int) -> Order:
        return Order(learning_rate=0.01 if number >= 3 else None)

    model, steps = run(configure(steps=4, schedule="constant", learning_rate=0.5), steer=steer)
    assert [adam.learning_rate for adam in model.adams] == [0.5, 0.5, 0.01, 0.01]
    assert [step.metrics["learning_rate"] for step in steps] == [0.5, 0.5, 0.01, 0.01]


def test_a_run_taken_up_at_a_step_goes_on_as_the_first_would_have() -> None:
    config = configure(steps=9, schedule="cosine", warmup_steps=2, checkpoint_every=4)
    whole_model, whole = run(config)
    for start in (0, 3, 4, 8, 9):
        model, rest = run(config, start=start)
        assert [step.number for step in rest] == list(range(start + 1, 10))
        assert [step.batch.rows for step in rest] == [step.batch.rows for step in whole[start:]]
        assert model.adams == whole_model.adams[start:]


def test_two_runs_of_one_config_ask_for_the_same_bytes() -> None:
    (first, _), (second, _) = run(configure(epochs=2)), run(configure(epochs=2))
    assert first.adams == second.adams
    for ours, theirs in zip(first.data, second.data, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.inputs["weights"], other.inputs["weights"])


def test_a_caller_that_stops_gets_no_further_operation() -> None:
    config, model = configure(steps=9), FakeModel()
    steps = train(model, prepared_for(config), config)
    next(steps)
    del steps
    assert len(model.adams) == 2


def test_held_out_loss_is_the_mean_over_all_its_tokens_and_changes_nothing() -> None:
    config = configure(held_out_share=0.5)
    prepared, model = prepared_for(config, 90), FakeModel()
    assert held_out_loss(model, prepared.held_out) == pytest.approx(2.0)
    assert all(event.split()[0] in ("forward", "wait") for event in model.events)
    assert sum(len(data) for data in model.data) == len(prepared.held_out)


def test_held_out_rows_go_in_several_passes_all_submitted_first() -> None:
    config = configure(held_out_share=0.9)
    prepared, model = prepared_for(config, 400), FakeModel()
    held_out_loss(model, prepared.held_out)
    waits = [event for event in model.events if event.startswith("wait")]
    assert len(waits) == len(model.data) > 1
    assert model.events[-len(waits) :] == waits
    assert max(sum(len(datum.tokens) for datum in data) for data in model.data) <= 4096


def test_no_held_out_row_is_said() -> None:
    with pytest.raises(InvalidInput, match="no row is held out: raise held_out_share"):
        held_out_loss(FakeModel(), [])


def test_preparing_counts_what_was_cut_and_left_out() -> None:
    long = {"role": "assistant", "content": "word " * 600}
    rows = [*sums(5), Row(number=6, messages=[{"role": "user", "content": "Hi"}, long])]
    tokenizer = ChatTokenizer.load(Path("tests/assets/tiny-chatml-1m"))
    cut = prepare(rows, tokenizer, configure(max_length=100_000))
    assert (cut.truncated, cut.dropped) == ([6], [])
    assert max(len(example.tokens) for example in cut.train) == 512
    dropped = prepare(rows, tokenizer, configure(overlong="drop"))
    assert (dropped.truncated, dropped.dropped, len(dropped.train)) == ([], [6], 5)


def test_a_dataset_of_which_nothing_is_left_says_why() -> None:
    with pytest.raises(InvalidInput, match=r"none of the 0 rows is left .* \(5 dropped\)"):
        prepared_for(configure(max_length=8), 5)


def test_epochs_become_steps() -> None:
    assert prepared_for(configure(epochs=2)).num_steps == 12
    assert prepared_for(configure(epochs=0.5)).num_steps == 3
    assert prepared_for(configure()).num_steps == 6


def test_plain_text_is_learned_from_its_second_token_on() -> None:
    tokenizer = ChatTokenizer.load(Path("tests/assets/tiny-chatml-1m"))
    rows = [Row(number=1, messages=[], metadata={"text": "What is 3 + 4? It is 7."})]
    (example,) = prepare(rows, tokenizer, configure(steps=1)).train
    assert tokenizer.decode(example.tokens.tolist()) == "What is 3 + 4? It is 7."
    assert example.num_weighted == len(example.tokens) - 1
    empty = [Row(number=7, messages=[], metadata={"text": ""})]
    with pytest.raises(InvalidInput, match="row 7: no token of '' is predicted"):
        prepare(empty, tokenizer, configure(steps=1))
