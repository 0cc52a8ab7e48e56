"""Datums as vectors through a worker: turns, crashes, and steps that divide by what was pulled."""

from itertools import count
from typing import Any

import numpy as np
import pytest

from tests.workers.cast import (
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_answer,
    read_loss,
    read_output,
    take_turns,
)
from training.types import Datum
from webapp.runs import queue
from webapp.runs.models import Metric, Operation
from workers import journal
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db
CONTRAST: dict[str, float | str] = {
    "output": "contrastive_loss",
    "num_queries": 2.0,
    "temperature": 0.1,
}
PROJECTION: dict[str, float | str] = {"output": "projection", "pooling": "mean"}


def make_data() -> list[Datum]:
    return [make_datum(seed, 6 + seed) for seed in range(4)]


def pull(datum: Datum) -> Datum:
    slopes = np.ones((len(datum.tokens), 3), np.float32)
    return Datum(tokens=datum.tokens, inputs={"projection_grads": slopes})


def submit(program: Program) -> list[Operation]:
    program.create(projection_head_dim=3)
    operations = []
    for _ in range(2):
        operations.append(program.learn_from(make_data(), config=CONTRAST))
        operations.append(program.learn_from(list(map(pull, make_data())), config=PROJECTION))
        program.step(grad_accumulation_normalization="num_sequences")
    operations.append(program.learn_from(make_data(), config=CONTRAST, forward_only=True))
    return operations


@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
def test_crashes_change_no_loss_of_vectors(
    monkeypatch: pytest.MonkeyPatch, autosave_seconds: float
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    calm, rough = (Program(run=make_client_run(number)) for number in range(2))
    expected = submit(calm)
    take_turns(make_device("calm"))
    found = submit(rough)
    device = make_device("rough")
    for number in count(1):  # a request that goes through the model twice has two turns
        if not run_turn(device):
            break
        if number % 3 == 0:
            queue.release_worker(worker="rough")
            device = make_device("rough")
    losses = [[read_loss(each) for each in operations] for operations in (expected, found)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][0] != losses[0][-1]  # the steps changed something
    steps = Metric.objects.filter(key="num_sequences").values_list("value", flat=True)
    assert list(steps) == [8.0] * 4  # four datums of each of the two losses


def test_what_is_told_of_datums_is_stored_by_its_name() -> None:
    program = Program()
    program.create(projection_head_dim=3)
    wishes: list[Any] = [
        {"output": "embedding", "pooling": "last"},
        PROJECTION,
        {"output": "cos_similarity_matrix"},
    ]
    asked = [program.learn_from(make_data(), config=config, forward_only=True) for config in wishes]
    take_turns(make_device())
    told = [read_output(operation) for operation in asked]
    assert [each.vector_name for each in told] == ["embedding", "projection", "embedding"]
    shapes = [[vector.shape for vector in each.vectors or ()] for each in told]
    assert shapes[0] == [(128,)] * 4
    assert shapes[1] == [(6 + number, 3) for number in range(4)]
    assert shapes[2] == [(4,)] * 4


def test_a_step_tells_of_its_norms_where_it_is_asked() -> None:
    program = Program()
    program.create()
    program.learn(0)
    step = program.step(emit_grad_norm_metrics="detailed")
    take_turns(make_device())
    metrics = read_answer(step)["metrics"]
    assert metrics["grad_norm/attn"] > 0
    assert metrics["grad_rms"] > 0
