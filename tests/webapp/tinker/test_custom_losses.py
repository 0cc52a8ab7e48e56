"""Custom losses on the wire: created once, found by their session alone, refused by name."""

import json
from typing import Any

import numpy as np
import pytest

from tests.training.tracing import LOGPROBS, call, call_method, make_graph, write_inputs
from tests.webapp.tinker.conftest import Program, make_datum, make_request
from webapp.fleet.models import BaseModel
from webapp.runs import custom_losses
from webapp.runs.models import CustomLoss, Operation
from webapp.wire.outcomes import read_all

INPUTS = write_inputs(logprobs=1, weights=1)
SUM = call_method("sum", LOGPROBS)


def find_session(model_id: str) -> str:
    return model_id.partition(":")[0]


def create(program: Program, model_id: str, *calls: dict[str, Any], **fields: Any) -> Any:
    body = {
        "session_id": find_session(model_id),
        "custom_loss_seq_id": 0,
        "name": "mine",
        "inputs": INPUTS,
        "graph": make_graph(*(calls or (SUM,))),
        "type": "create_custom_loss",
        **fields,
    }
    return program.post("create_custom_loss", **body)


def train(program: Program, model_id: str, loss_id: Any, seq: int = 1, **inputs: Any) -> Any:
    inputs = {"weights": np.ones(4, np.float32), **inputs}
    config = {"loss_id": loss_id} if loss_id is not None else {}
    request = make_request(make_datum(**inputs), loss_fn="custom", config=config)
    return program.train(model_id, seq, request)


def test_a_loss_is_promised_and_there_at_once(program: Program, model_id: str) -> None:
    promise = create(program, model_id)
    loss = CustomLoss.objects.get()
    assert promise == {"request_id": loss.pk}
    outcome = read_all([loss.pk])[loss.pk]
    assert outcome.is_over
    assert outcome.project_id == program.actor.project.pk
    assert json.loads(outcome.result) == {"loss_id": loss.pk, "type": "create_custom_loss"}


def test_a_loss_is_read_beside_operations_and_calls(program: Program, model_id: str) -> None:
    loss_id = create(program, model_id)["request_id"]
    operation = program.train(model_id, 1)["request_id"]
    asked = [loss_id, operation, "loss-unknown", "call-77"]
    assert set(read_all(asked)) == {loss_id, operation, "call-77"}


def test_a_loss_created_again_is_the_same_promise(program: Program, model_id: str) -> None:
    assert create(program, model_id) == create(program, model_id)
    assert CustomLoss.objects.count() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"inputs": write_inputs(logprobs=1, weights=2)},
        {"graph": make_graph(call("torch.sum", LOGPROBS))},
    ],
)
def test_its_number_with_other_content_is_refused(
    program: Program, model_id: str, change: dict[str, Any]
) -> None:
    create(program, model_id)
    answer = create(program, model_id, **change)
    assert program.status == 400
    assert "custom_loss_seq_id 0 was already used for another loss" in answer["detail"]
    create(program, model_id, **change, custom_loss_seq_id=1)
    assert program.status == 200


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ([call("torch.load", "/etc/passwd")], "'torch.load' is not allowed in a custom loss"),
        ([call("torch.hub.load", "a/b", "c")], "'torch.hub.load' is not allowed"),
        ([call("operator.attrgetter", "__class__")], "'operator.attrgetter' is not allowed"),
        ([call("operator.methodcaller", "backward")], "'operator.methodcaller' is not allowed"),
        ([call("getattr", LOGPROBS, "__class__")], "'__class__' is not allowed"),
        ([call("getattr", LOGPROBS, "grad_fn")], "'grad_fn' is not allowed"),
        ([call_method("numpy", LOGPROBS)], "'numpy' is not allowed"),
        ([call_method("add_", LOGPROBS, 1)], "changes a tensor in place; use add"),
    ],
)
def test_what_a_loss_may_not_call_is_refused_by_name(
    program: Program, model_id: str, calls: list[dict[str, Any]], complaint: str
) -> None:
    answer = create(program, model_id, *calls)
    assert program.status == 400
    assert complaint in answer["detail"]
    assert not CustomLoss.objects.exists()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"session_id": None}, "session_id is required"),
        ({"custom_loss_seq_id": -1}, "custom_loss_seq_id is -1"),
        ({"custom_loss_seq_id": None}, "custom_loss_seq_id is required"),
        ({"name": 3}, "name is 3"),
        ({"name": ""}, "name has 0 characters"),
        ({"inputs": None}, "inputs is no list"),
        ({"graph": None}, "graph is not of format 1"),
        ({"graph": {"format": 1, "nodes": [{}] * 10_000}}, "graph has 10000 nodes"),
    ],
)
def test_a_body_that_is_no_loss_is_refused(
    program: Program, model_id: str, fields: dict[str, Any], complaint: str
) -> None:
    answer = create(program, model_id, **fields)
    assert program.status == 400
    assert complaint in answer["detail"]


def test_a_depth_bomb_is_refused(program: Program, model_id: str) -> None:
    deep = b'{"tuple":[' * 100_000
    body = b'{"session_id": "s", "graph": ' + deep
    answer = program.send("POST", "create_custom_loss", body)
    assert program.status == 400
    assert "is not JSON" in answer["detail"]


def test_a_session_has_a_bounded_number_of_losses(
    program: Program, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_losses, "MAX_LOSSES", 2)
    for seq_id in (0, 1):
        create(program, model_id, custom_loss_seq_id=seq_id)
    answer = create(program, model_id, custom_loss_seq_id=2)
    assert program.status == 400
    assert "2 custom losses, the most there can be" in answer["detail"]
    create(program, model_id, custom_loss_seq_id=1)
    assert program.status == 200


def test_a_graph_of_many_bytes_is_refused(
    program: Program, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_losses, "MAX_GRAPH_BYTES", 50)
    assert "the most is 50" in create(program, model_id)["detail"]


def test_a_stranger_creates_no_loss_in_a_session_and_polls_none(
    program: Program, stranger: Program, model_id: str
) -> None:
    create(stranger, model_id)
    assert stranger.status == 404
    loss_id = create(program, model_id)["request_id"]
    outcome = read_all([loss_id])[loss_id]
    assert outcome.project_id != stranger.actor.project.pk


def test_a_request_with_a_loss_of_its_session_is_queued(program: Program, model_id: str) -> None:
    loss_id = create(program, model_id)["request_id"]
    train(program, model_id, loss_id)
    assert program.status == 200
    assert Operation.objects.get(seq=1).status == Operation.Status.QUEUED


@pytest.mark.parametrize(
    ("loss_id", "complaint"),
    [
        ("loss-unknown", "config 'loss_id' is 'loss-unknown': the session of this model has no"),
        (None, "config 'loss_id' is missing"),
        (7.0, "config 'loss_id' is missing"),
    ],
)
def test_a_loss_that_is_not_there_is_refused_by_its_id(
    program: Program, model_id: str, loss_id: Any, complaint: str
) -> None:
    answer = train(program, model_id, loss_id)
    assert program.status == 400
    assert complaint in answer["detail"]
    assert Operation.objects.get(seq=1).status == Operation.Status.REFUSED


def test_a_loss_of_another_session_is_not_there(
    program: Program, stranger: Program, model_id: str, base_model: BaseModel
) -> None:
    loss_id = create(program, model_id)["request_id"]
    for other in (program, stranger):
        answer = train(other, other.open_model(base_model), loss_id)
        assert other.status == 400
        assert loss_id in answer["detail"]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"weights": np.ones((4, 1), np.float32)}, "datum 0: weights has the shape (4, 1)"),
        ({"target_tokens": np.ones((4, 2), np.int64)}, "datum 0: target_tokens has the shape"),
        ({"target_tokens": np.ones(3, np.int64)}, "datum 0: target_tokens has the shape (3,)"),
    ],
)
def test_a_datum_that_does_not_fit_the_loss_is_named(
    program: Program, model_id: str, inputs: dict[str, Any], complaint: str
) -> None:
    loss_id = create(program, model_id)["request_id"]
    answer = train(program, model_id, loss_id, **inputs)
    assert program.status == 400
    assert complaint in answer["detail"]


def test_a_missing_input_is_named(program: Program, model_id: str) -> None:
    loss_id = create(program, model_id)["request_id"]
    request = make_request(make_datum(), loss_fn="custom", config={"loss_id": loss_id})
    answer = program.train(model_id, 1, request)
    assert "datum 0: weights is missing: the custom loss mine reads it" in answer["detail"]


def test_clients_are_told_to_send_their_losses(program: Program) -> None:
    assert program.post("client/config", sdk_version="0.38.0")["custom_loss_server_side"] is True
