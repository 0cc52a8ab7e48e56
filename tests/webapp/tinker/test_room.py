"""What no worker has memory for is refused as it is sent, with what to change."""

from pathlib import Path

import pytest

from tests.webapp.tinker.conftest import Program, make_datum, make_request
from training.memory import Memory
from training.shapes import ModelShape
from training.types import LoraSpec
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.services import add_base_model
from webapp.runs import room
from webapp.runs.models import Operation, Run

pytestmark = pytest.mark.django_db

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return add_base_model(path=str(TINY), names=["tiny"])


def offer(num_bytes: int) -> None:
    memory = {"device": "cpu", "room": num_bytes, "token_budget": 4096}
    Worker.objects.update_or_create(
        name="w1", defaults={"kind": Worker.Kind.GPU, "holds": {"memory": memory}}
    )


def predict(num_tokens: int) -> int:
    spec = LoraSpec(rank=8, train_unembed=True)
    return Memory(shape=ModelShape.read(TINY), spec=spec).predict(num_tokens).total


def test_a_datum_that_is_too_long_for_every_worker_is_named(
    program: Program, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ALWAYS_FITS", 50)
    model_id = program.open_model(base_model)
    offer(predict(100))
    answer = program.train(model_id, 1, make_request(make_datum(60), make_datum(200)))
    assert program.status == 400
    assert "datum 1 has 200 tokens" in str(answer)
    assert "hold 100 of them for this run; send shorter ones" in str(answer)
    program.train(model_id, 2, make_request(make_datum(60), make_datum(90)))
    assert program.status == 200
    assert [each.status for each in Operation.objects.order_by("seq")][1:] == ["refused", "queued"]


def test_a_pass_without_gradients_may_be_longer(
    program: Program, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ALWAYS_FITS", 50)
    model_id = program.open_model(base_model)
    offer(predict(100))
    program.train(model_id, 1, make_request(make_datum(200), forward_only=True))
    assert program.status == 200


def test_a_model_that_no_worker_can_hold_is_refused_as_it_is_created(
    program: Program, base_model: BaseModel
) -> None:
    offer(5_000_000)
    answer = program.post(
        "create_model",
        session_id=program.open_session(),
        model_seq_id=0,
        base_model="tiny",
        lora_config={"rank": 512},
    )
    assert program.status == 400
    assert "choose a smaller rank" in str(answer)
    assert not Run.objects.exists()
