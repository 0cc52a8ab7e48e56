"""Packs: every token is laid, shared beginnings once, and the numbers are as if they were not."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.training.engine.rows import make_data, make_datum
from training.engine.core import Engine
from training.engine.lora import Slice
from training.engine.packing import Item, lay_out
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec


def join(*parts: int, vocab_size: int = 97) -> Datum:
    """A datum of pieces made from seeds: equal seeds at the front are a common beginning."""
    pieces = [make_datum(17 + seed % 3, seed=seed, vocab_size=vocab_size) for seed in parts]
    names = pieces[0].inputs
    return Datum(
        tokens=np.concatenate([piece.tokens for piece in pieces]),
        inputs={name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in names},
    )


def cut(datum: Datum, length: int) -> Datum:
    inputs = {name: values[:length] for name, values in datum.inputs.items()}
    return Datum(tokens=datum.tokens[:length], inputs=inputs)


FAMILIES: dict[str, list[Datum]] = {
    "samples of one prompt": [join(1, 2), join(1, 3), join(1, 4)],
    "a tree of two levels": [join(1, 2, 3), join(1, 2, 4), join(1, 5), join(6)],
    "the same datum three times": [join(1, 2)] * 3,
    "one is the beginning of another": [join(1, 2), join(1), cut(join(1, 2), 30)],
    "too little in common": [cut(join(1), 15), join(1, 2), join(3)],
    "two families and loners": [
        join(1, 2),
        join(3, 4),
        join(1, 5),
        join(3, 6),
        join(7),
        join(7, 8),
    ],
}


def make_items(data: Sequence[Datum], run: str = "run") -> list[Item]:
    return [Item(run=run, index=index, datum=datum) for index, datum in enumerate(data)]


def pack_all(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.order)


@pytest.mark.parametrize("data", FAMILIES.values(), ids=FAMILIES)
def test_every_item_finds_its_tokens_and_positions_in_the_row(data: list[Datum]) -> None:
    pack = pack_all(make_items(data))
    layout = lay_out(pack)
    tokens = np.concatenate([item.datum.tokens for item in pack])
    positions = np.concatenate([np.arange(item.length) for item in pack])
    np.testing.assert_array_equal(layout.tokens[layout.places], tokens)
    np.testing.assert_array_equal(layout.positions[layout.places], positions)
    laid = sum(group.count * group.length for group in layout.segments.groups)
    assert laid == len(layout.tokens)


def test_samples_of_one_prompt_share_it() -> None:
    data = FAMILIES["samples of one prompt"]
    prompt = len(join(1).tokens)
    layout = lay_out(pack_all(make_items(data)))
    assert len(layout.tokens) == sum(len(datum.tokens) for datum in data) - 2 * prompt


def test_runs_do_not_share_what_they_have_in_common() -> None:
    items = [*make_items([join(1)], "a"), *make_items([join(1)], "b")]
    layout = lay_out(pack_all(items))
    length = len(join(1).tokens)
    assert [part.laid for part in layout.parts] == [
        Slice("a", 0, length),
        Slice("b", length, 2 * length),
    ]


def test_equally_long_strangers_are_one_group() -> None:
    layout = lay_out(pack_all(make_items(make_data(8, 5, 8, 8, seed=1) + make_data(8, seed=2))))
    groups = [(group.count, group.length) for group in layout.segments.groups]
    assert sorted(groups) in ([(1, 5), (4, 8)], [(1, 5), (1, 8), (3, 8)], [(1, 5), (2, 8), (2, 8)])


def read_gradients(engine: Engine) -> torch.Tensor:
    return engine.adapters.by_run["run"].gradients.clone()


def run_request(engine: Engine, data: Sequence[Datum], loss_fn: str) -> ForwardBackwardOutput:
    request = ForwardBackward(data=data, loss_fn=loss_fn)
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "importance_sampling"])
@pytest.mark.parametrize("data", FAMILIES.values(), ids=FAMILIES)
def test_sharing_changes_neither_logprobs_nor_loss_nor_gradient(
    engine: Engine,
    stir: Callable[[Engine, str], None],
    data: list[Datum],
    loss_fn: str,
) -> None:
    engine.create_adapter("run", LoraSpec(rank=4, train_unembed=True))
    stir(engine, "run")
    together = run_request(engine, data, loss_fn)
    gradients = read_gradients(engine)
    engine.adapters.by_run["run"].drop_gradients()
    apart = [run_request(engine, [datum], loss_fn) for datum in data]
    torch.testing.assert_close(gradients, read_gradients(engine), atol=2e-5, rtol=1e-4)
    for left, right in zip(together.logprobs, apart, strict=True):
        np.testing.assert_allclose(left, right.logprobs[0], atol=1e-5)
    losses = [one.metrics["loss:sum"] for one in apart]
    assert together.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-5)
