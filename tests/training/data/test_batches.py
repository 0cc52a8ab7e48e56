"""Splits and batches: the same everywhere, and nothing on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from training.data import batches
from training.data.batches import (
    Batch,
    Epochs,
    count_steps,
    make_batches,
    order_epoch,
    plan,
    split_held_out,
)
from training.data.examples import Example
from training.errors import InvalidInput


def example(number: int, *, length: int = 8, key: bytes | None = None) -> Example:
    mask = np.zeros(length, dtype=np.bool_)
    mask[length // 2 :] = True
    return Example(
        number=number,
        key=key or hashlib.sha256(str(number).encode()).digest(),
        prompt_key=bytes([number % 250]),
        tokens=np.arange(number, number + length, dtype=np.int32),
        mask=mask,
    )


EXAMPLES = [example(number, length=4 + number % 7) for number in range(1, 1001)]


def numbers(made: Sequence[Batch]) -> list[int]:
    return [number for batch in made for number in batch.rows]


def test_a_row_is_held_out_by_its_content_whatever_the_order() -> None:
    _, held_out = split_held_out(EXAMPLES, share=0.25, seed=3)
    _, again = split_held_out(EXAMPLES[::-1], share=0.25, seed=3)
    assert sorted(row.number for row in held_out) == sorted(row.number for row in again)
    assert 200 < len(held_out) < 300


def test_more_rows_do_not_move_a_row_to_the_other_side() -> None:
    _, few = split_held_out(EXAMPLES[:100], share=0.25, seed=3)
    _, all_rows = split_held_out(EXAMPLES, share=0.25, seed=3)
    assert {row.number for row in few} == {row.number for row in all_rows if row.number <= 100}


def test_equal_rows_never_stand_on_both_sides() -> None:
    twins = [example(number, key=bytes([number % 50])) for number in range(200)]
    train, held_out = split_held_out(twins, share=0.5, seed=0)
    assert not {row.key for row in train} & {row.key for row in held_out}
    assert train
    assert held_out


def test_another_seed_holds_out_others_and_no_share_holds_out_none() -> None:
    first, second = (split_held_out(EXAMPLES, share=0.25, seed=seed)[1] for seed in (1, 2))
    assert {row.number for row in first} != {row.number for row in second}
    assert split_held_out(EXAMPLES, share=0, seed=1) == (EXAMPLES, [])


def test_what_a_split_left_to_train_on_is_split_again_by_another_hash() -> None:
    train, _ = split_held_out(EXAMPLES, share=0.25, seed=1)
    assert split_held_out(train, share=0.25, seed=1)[1] == []
    inner, held_out = split_held_out(train, share=0.25, seed=1, num_splits=1)
    assert 130 < len(held_out) < 250
    assert 90 < len(split_held_out(inner, share=0.25, seed=1, num_splits=2)[1]) < 190


def test_by_prompt_rows_that_ask_the_same_stand_on_one_side() -> None:
    train, held_out = split_held_out(EXAMPLES, share=0.25, seed=1, by="prompt")
    assert not {row.prompt_key for row in train} & {row.prompt_key for row in held_out}
    assert 120 < len(held_out) < 380


def test_batches_from_any_place_are_those_of_the_stream_and_an_epoch_is_shuffled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, shuffled = EXAMPLES[:7], list[int]()

    def shuffle(items: Sequence[Example], *, seed: int, epoch: int) -> list[Example]:
        shuffled.append(epoch)
        return order_epoch(items, seed=seed, epoch=epoch)

    stream = [row for epoch in range(9) for row in order_epoch(few, seed=3, epoch=epoch)]
    monkeypatch.setattr(batches, "order_epoch", shuffle)
    epochs = Epochs(items=few, seed=3)
    for size in (1, 3, 16):
        for start in range(0, 48, size):
            assert epochs.take(start, size) == stream[start : start + size]
        assert shuffled == sorted(set(shuffled))
        shuffled.clear()
        epochs = Epochs(items=few, seed=3)
    assert epochs.take(40, 2) == stream[40:42]
    assert epochs.take(0, 9) == stream[:9]


def test_an_epoch_shows_every_row_once_in_another_order() -> None:
    first = order_epoch(EXAMPLES, seed=1, epoch=0)
    second = order_epoch(EXAMPLES, seed=1, epoch=1)
    assert sorted(row.number for row in first) == [row.number for row in EXAMPLES]
    assert [row.number for row in first] != [row.number for row in second]
    assert [row.number for row in first] != [row.number for row in EXAMPLES]


def test_batches_go_on_over_the_end_of_an_epoch_and_say_how_far_they_are() -> None:
    batches = list(make_batches(EXAMPLES[:10], batch_size=4, num_steps=5, seed=1))
    assert [len(batch.data) for batch in batches] == [4] * 5
    assert [batch.epoch for batch in batches] == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert set(Counter(numbers(batches)).values()) == {2}


def test_batches_are_written_in_stone() -> None:
    batches = make_batches(EXAMPLES[:8], batch_size=4, num_steps=2, seed=1)
    assert numbers(list(batches)) == [4, 8, 1, 5, 2, 7, 6, 3]


def test_a_run_taken_up_in_the_middle_sees_the_batches_it_would_have_seen() -> None:
    whole = list(make_batches(EXAMPLES[:10], batch_size=4, num_steps=9, seed=1))
    for start in range(9):
        rest = make_batches(EXAMPLES[:10], batch_size=4, num_steps=9, seed=1, start=start)
        assert numbers(list(rest)) == numbers(whole[start:])


def test_a_batch_larger_than_the_dataset_repeats_rows() -> None:
    (batch,) = make_batches(EXAMPLES[:3], batch_size=7, num_steps=1, seed=1)
    assert sorted(Counter(batch.rows).values()) == [2, 2, 3]


def test_the_weights_of_a_batch_sum_to_one_over_the_assistants_tokens() -> None:
    (batch,) = make_batches(EXAMPLES[:5], batch_size=5, num_steps=1, seed=1)
    weights = np.concatenate([datum.inputs["weights"] for datum in batch.data])
    assert weights.sum() == pytest.approx(1)
    assert set(weights.tolist()) == {0.0, float(np.float32(1 / batch.num_weighted))}
    assert batch.num_weighted == np.count_nonzero(weights)
    assert batch.num_tokens == sum(len(datum.tokens) for datum in batch.data)


def test_no_rows_to_train_on_is_said() -> None:
    with pytest.raises(InvalidInput, match="no row is left to train on"):
        next(make_batches([], batch_size=1, num_steps=1, seed=1))
    with pytest.raises(InvalidInput, match="no row is left to train on"):
        plan([], [], batch_size=1, num_steps=1)


@pytest.mark.parametrize(
    ("num_train", "epochs", "steps", "wanted"),
    [
        (100, 1, None, 13),
        (96, 2, None, 24),
        (30, 0.1, None, 1),
        (5, 0.01, None, 1),
        (5, None, 40, 40),
    ],
)
def test_steps_follow_from_epochs(
    num_train: int, epochs: float | None, steps: int | None, wanted: int
) -> None:
    batch_size = 3 if num_train == 30 else 8
    found = count_steps(num_train, batch_size=batch_size, epochs=epochs, steps=steps)
    assert found == wanted


def test_the_plan_counts_what_the_batches_hold() -> None:
    train, held_out = EXAMPLES[:40], EXAMPLES[40:50]
    counted = plan(train, held_out, batch_size=8, num_steps=10)
    batches = list(make_batches(train, batch_size=8, num_steps=10, seed=1))
    assert counted.num_tokens == sum(batch.num_tokens for batch in batches)
    assert (counted.num_train, counted.num_held_out, counted.epochs) == (40, 10, 2.0)
    assert counted.weighted_per_step == sum(batch.num_weighted for batch in batches) / 10
    assert counted.longest == 10
