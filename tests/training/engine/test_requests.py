"""Every refusal names the datum and the field."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.training.engine.rows import make_datum
from training.errors import InvalidInput
from training.requests import check_request
from training.types import Datum, ForwardBackward


def change(inputs: Mapping[str, Any], *, drop: str | None = None) -> Datum:
    datum = make_datum(6)
    merged = {**datum.inputs, **{key: np.asarray(value) for key, value in inputs.items()}}
    return replace(datum, inputs={key: merged[key] for key in merged if key != drop})


def put_at(name: str, value: float) -> Datum:
    values = make_datum(6).inputs[name].copy()
    values[3] = value
    return change({name: values})


IDS = np.arange(6)
BAD_DATUMS: dict[str, tuple[str, Datum]] = {
    "tokens are empty": ("cross_entropy", replace(make_datum(6), tokens=np.array([], np.int64))),
    "70 tokens do not fit the model's context of 64": ("cross_entropy", make_datum(70)),
    "tokens: 97 at position 5 is no token": (
        "cross_entropy",
        replace(make_datum(6), tokens=IDS + 92),
    ),
    "tokens: -1 at position 0 is no token": (
        "cross_entropy",
        replace(make_datum(6), tokens=IDS - 1),
    ),
    "tokens are float64: send integers": (
        "cross_entropy",
        replace(make_datum(6), tokens=IDS.astype(np.float64)),
    ),
    "target_tokens: 500 at position 3": ("ppo", put_at("target_tokens", 500)),
    "target_tokens is missing": ("dro", change({}, drop="target_tokens")),
    "target_tokens has the shape (6, 3): ppo reads one target per position": (
        "ppo",
        change({"target_tokens": np.zeros((6, 3), np.int64)}),
    ),
    "target_tokens has the shape (6, 0): send from 1 to 97 targets": (
        "cross_entropy",
        change({"target_tokens": np.zeros((6, 0), np.int64)}),
    ),
    "target_tokens has the shape (6, 98): send from 1 to 97 targets": (
        "cross_entropy",
        change({"target_tokens": np.zeros((6, 98), np.int64)}),
    ),
    "target_tokens: 97 at position 2, column 1 is no token": (
        "cross_entropy",
        change({"target_tokens": np.where(np.arange(12).reshape(6, 2) == 5, 97, 0)}),
    ),
    "weights has the shape (6,), target_tokens (6, 3): send one value per target": (
        "cross_entropy",
        change({"target_tokens": np.zeros((6, 3), np.int64)}),
    ),
    "weights: inf at position 0, column 0 is not finite": (
        "cross_entropy",
        change({"target_tokens": np.zeros((6, 2), np.int64), "weights": np.full((6, 2), np.inf)}),
    ),
    "target_tokens has the shape (5,), the datum has 6 tokens": (
        "cross_entropy",
        change({"target_tokens": IDS[:5]}),
    ),
    "weights has the shape (7,)": ("cross_entropy", change({"weights": np.ones(7)})),
    "weights: nan at position 3": ("cross_entropy", put_at("weights", np.nan)),
    "advantages is missing: ppo reads": ("ppo", change({}, drop="advantages")),
    "advantages: nan at position 3 is not finite": ("ppo", put_at("advantages", np.nan)),
    "logprobs: -inf at position 3 is not finite": ("cispo", put_at("logprobs", -np.inf)),
    "logprobs has the shape (2,)": ("importance_sampling", change({"logprobs": np.ones(2)})),
    "clip_low_threshold: inf at position 0": (
        "ppo",
        change({"clip_low_threshold": np.full(6, np.inf)}),
    ),
}


@pytest.mark.parametrize("text", BAD_DATUMS)
def test_a_bad_datum_is_refused_by_index_and_field(text: str) -> None:
    loss_fn, datum = BAD_DATUMS[text]
    request = ForwardBackward(data=[make_datum(6), datum], loss_fn=loss_fn)
    with pytest.raises(InvalidInput) as caught:
        check_request(request, vocab_size=97, context=64)
    assert str(caught.value).startswith("datum 1: ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ForwardBackward(data=[]), "data is empty"),
        (ForwardBackward(data=[make_datum(3)], loss_fn="mse"), "loss_fn 'mse' is not known here"),
        (
            ForwardBackward(data=[make_datum(3)], config={"beta": 1.0}),
            "'beta': cross_entropy knows",
        ),
        (
            ForwardBackward(data=[make_datum(3)], loss_fn="ppo", config={"clip_high": 1.0}),
            "knows clip_high_threshold, clip_low_threshold",
        ),
        (
            ForwardBackward(data=[make_datum(3)], loss_fn="dro", config={"beta": float("inf")}),
            "config 'beta' is inf",
        ),
        (
            ForwardBackward(data=[make_datum(3)], loss_fn="dro", config={"beta": "high"}),
            "config 'beta' is 'high'",
        ),
        (ForwardBackward(data=[make_datum(3)], config={"logprobs": "no"}), "'all' or 'weighted'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_refused_with_what_is_known(request_: ForwardBackward, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        check_request(request_, vocab_size=97, context=64)


@pytest.mark.parametrize(
    "loss_fn", ["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "stable_reinforce"]
)
def test_a_full_datum_is_accepted_by_every_loss(loss_fn: str) -> None:
    request = ForwardBackward(data=[make_datum(64)], loss_fn=loss_fn)
    assert check_request(request, vocab_size=97, context=64) is None  # type: ignore[func-returns-value]
