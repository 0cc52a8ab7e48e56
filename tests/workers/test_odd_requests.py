"""What the door lets in, the engine answers: with numbers or with whose fault it is, in JSON."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from tests.workers.cast import Program, make_device, read_loss, take_turns
from training.errors import InvalidInput
from training.requests import check_request
from training.types import Datum, ForwardBackward
from webapp.runs.models import Operation
from webapp.runs.optimizers import MOST
from webapp.wire.passes import encode_forward_backward

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

VOCAB, CONTEXT, LENGTH = 512, 128, 5
LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
NUMBERS = st.sampled_from((0.0, 1.0, -1.0, 1e-45, 3e38, -3e38, 1e20, -700.0, 90.0))
ROWS = st.lists(NUMBERS, min_size=LENGTH, max_size=LENGTH).map(lambda row: np.array(row, "f4"))
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH).map(np.array)
RATES = st.sampled_from((0.0, 1e-45, 1e-3, 1.0, MOST))
one_world = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@st.composite
def requests(draw: Any) -> ForwardBackward:
    names = ("weights", "logprobs", "advantages", "clip_low_threshold", "clip_high_threshold")
    datum = Datum(
        tokens=draw(IDS),
        inputs={"target_tokens": draw(IDS), **{name: draw(ROWS) for name in names}},
    )
    loss_fn = draw(st.sampled_from(LOSSES))
    config = {"beta": draw(NUMBERS)} if loss_fn == "dro" and draw(st.booleans()) else {}
    return ForwardBackward(
        data=[datum] * draw(st.sampled_from((1, 1, 3))),
        loss_fn=loss_fn,
        config=config,
        forward_only=draw(st.integers(0, 4)) == 0,
    )


def refuse_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} in an answer: no client reads it")


def check_ended(operation: Operation) -> None:
    operation.refresh_from_db()
    if operation.status == Operation.Status.FAILED:
        assert operation.error_category == "user", operation.error
        return
    assert operation.status == Operation.Status.DONE
    if operation.kind == Operation.Kind.OPTIM_STEP:
        json.loads(bytes(operation.result or b""), parse_constant=refuse_constant)


def test_odd_numbers_are_answered_and_the_next_step_is_right(
    settings_: Settings, tmp_path: Path
) -> None:
    program, device = Program(), make_device()
    program.create()

    @settings(max_examples=100, suppress_health_check=one_world)
    @given(request=requests(), rate=RATES)
    def send(request: ForwardBackward, rate: float) -> None:
        try:
            check_request(request, VOCAB, CONTEXT)
        except InvalidInput:
            return
        body = encode_forward_backward(program.run.model_id, program.seq, request)
        columns = {"num_tokens": request.weight, "forward_only": request.forward_only}
        gradient = program.submit(Operation.Kind.FORWARD_BACKWARD, body, **columns)
        update = program.send(
            Operation.Kind.OPTIM_STEP, adam_params={"learning_rate": rate, "weight_decay": rate}
        )
        take_turns(device)
        check_ended(gradient)
        check_ended(update)

    send()
    fresh = Program(run=program.run, seq=program.seq)
    fresh.create()
    losses = [read_after(device, fresh, number) for number in range(3)]
    assert all(np.isfinite(losses))


def read_after(device: Any, program: Program, number: int) -> float:
    operation = program.learn(number)
    program.step()
    take_turns(device)
    return read_loss(operation)


@pytest.fixture(name="settings_")
def keep_state_here(settings: Settings, tmp_path: Path) -> Settings:
    settings.HONE_HOME = tmp_path
    (tmp_path / "locks").mkdir()
    return settings
