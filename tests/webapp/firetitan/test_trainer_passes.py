"""Passes and steps on the trainer's wire: what is stored of them, and what breaks its promise."""

import json
from typing import Any

import numpy as np
import pytest

from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_datum, make_job, make_tensor
from training.routing import encode_routes
from training.types import ForwardBackward
from webapp.fleet.models import BaseModel
from webapp.runs import queue
from webapp.runs.models import Operation
from webapp.wire.passes import decode_forward_backward

Kind, Status = Operation.Kind, Operation.Status


@pytest.fixture
def trainer(program: Program, base_model: BaseModel) -> Trainer:
    made = Trainer(program=program, job=make_job(program, base_model))
    made.open_session()
    made.open_model()
    return made


def read_request(operation: Operation) -> ForwardBackward:
    _, _, request = decode_forward_backward(bytes(operation.payload or b""))
    return request


def test_a_pass_is_stored_as_every_clients_is(trainer: Trainer) -> None:
    promise = trainer.learn(make_datum(weights=make_tensor([0.0, 1, 0.5, -1])), make_datum(3))
    operation = trainer.last
    assert promise == {"request_id": f"op-{operation.pk}", "model_id": trainer.model_id}
    assert (operation.kind, operation.num_tokens) == (Kind.FORWARD_BACKWARD, 7)
    assert not operation.forward_only
    first, second = read_request(operation).data
    assert first.tokens.tolist() == [1, 2, 3, 4]
    assert first.inputs["weights"].tolist() == [0.0, 1.0, 0.5, -1.0]
    assert second.inputs["target_tokens"].tolist() == [2, 3, 4]


def test_a_forward_changes_nothing(trainer: Trainer) -> None:
    trainer.score()
    assert trainer.last.forward_only
    assert read_request(trainer.last).forward_only


def test_a_pass_sent_again_is_the_same_promise(trainer: Trainer) -> None:
    first = trainer.learn()
    trainer.seq = 0
    assert trainer.learn() == first
    trainer.seq = 0
    answer = trainer.learn(make_datum(5))
    assert (trainer.status, "already used" in answer["message"]) == (400, True)


def test_chunks_may_come_in_any_order(trainer: Trainer) -> None:
    for seq in (3, 1, 2):
        trainer.seq = seq - 1
        trainer.learn(make_datum(seq))
    queue.lease_run(trainer.run, worker="w1")
    done = Operation.objects.get(seq=0)
    Operation.objects.filter(pk=done.pk).update(status=Status.DONE)
    run = trainer.run
    run.done_seq = 0
    run.save(update_fields=["done_seq"])
    assert [each.seq for each in queue.next_operations(run, worker="w1")] == [1, 2, 3]


def test_chunks_of_one_input_are_one_sequence(trainer: Trainer) -> None:
    datum = make_datum(4)
    datum["model_input"]["chunks"] = [
        {"type": "encoded_text", "tokens": [1, 2]},
        {"type": "encoded_text", "tokens": [3, 4]},
    ]
    trainer.learn(datum)
    assert read_request(trainer.last).data[0].tokens.tolist() == [1, 2, 3, 4]


def test_a_sparse_tensor_is_unpacked(trainer: Trainer) -> None:
    sparse: dict[str, Any] = {
        "sparse_crow_indices": [0, 1, 1, 2],
        "sparse_col_indices": [1, 0],
        "shape": [3, 2],
    }
    weights = make_tensor([0.5, 2], **sparse)
    targets = make_tensor([7, 9], "int64", **sparse)
    trainer.learn(make_datum(3, target_tokens=targets, weights=weights))
    datum = read_request(trainer.last).data[0]
    assert datum.inputs["weights"].tolist() == [[0, 0.5], [0, 0], [2, 0]]
    assert datum.inputs["target_tokens"].tolist() == [[0, 7], [0, 0], [9, 0]]


def test_a_policy_loss_has_its_numbers_and_config(trainer: Trainer) -> None:
    inputs: dict[str, Any] = {name: make_tensor([0.5] * 4) for name in ("logprobs", "advantages")}
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    trainer.learn(make_datum(**inputs), loss_fn="ppo", loss_fn_config=config)
    request = read_request(trainer.last)
    assert (request.loss_fn, request.config) == ("ppo", config)
    assert trainer.last.status == Status.QUEUED


def test_a_config_that_says_what_holds_anyway_is_none(trainer: Trainer) -> None:
    config = {"target_logprob_support": "full_vocabulary", "score_centering": False}
    trainer.learn(loss_fn_config=config)
    assert (trainer.last.status, read_request(trainer.last).config) == (Status.QUEUED, {})


def test_the_ratio_of_gspo_is_the_mean_of_the_tokens_with_an_advantage(trainer: Trainer) -> None:
    inputs: dict[str, Any] = {
        "logprobs": make_tensor([0.5] * 4),
        "advantages": make_tensor([0, 0, 1, -1]),
    }
    trainer.learn(make_datum(**inputs), loss_fn="gspo")
    assert trainer.last.status == Status.QUEUED, trainer.last.error
    mask = read_request(trainer.last).data[0].inputs["sequence_ratio_mask"]
    assert mask.tolist() == [0, 0, 1, 1]


def test_routes_come_as_a_text_a_position(trainer: Trainer) -> None:
    routes = np.arange(16).reshape(4, 2, 2)
    datum = make_datum()
    datum["model_input"]["routing_matrices"] = encode_routes(routes)
    trainer.learn(datum)
    stored = read_request(trainer.last).data[0].routes
    assert stored is not None
    assert stored.tolist() == routes.tolist()


IMAGE = {"type": "image", "data": "", "format": "png", "expected_tokens": 1}


@pytest.mark.parametrize(
    ("datum", "fields", "complaint"),
    [
        (make_datum(), {"loss_fn": "no_such_loss"}, "'no_such_loss' is not known"),
        (make_datum(), {"loss_fn_config": {"beta": 1}}, "config 'beta'"),
        (make_datum(), {"loss_fn_config": {"beta": [1]}}, "loss_fn_config.beta is [1]"),
        (make_datum(), {"data": []}, "data is empty"),
        (make_datum(), {"data": [1]}, "data is [1]"),
        ({"model_input": {"chunks": [IMAGE]}}, {}, "chunk of type image"),
        ({"model_input": {"chunks": [{"tokens": ["a"]}]}}, {}, "datum 0: tokens: the values are"),
        ({"model_input": {"chunks": [{"tokens": [1.5]}]}}, {}, "no list of whole numbers"),
        ({"model_input": {"routing_references": {"length": 0}}}, {}, "no references to files"),
        ({"model_input": {"routing_matrices": ["?"]}}, {}, "position 0 is not base64"),
        (make_datum(0), {}, "tokens are empty"),
        (make_datum(weights=make_tensor([1.0])), {}, "weights has the shape (1,)"),
        (make_datum(weights=make_tensor([1e300] * 4)), {}, "weights: inf"),
        (make_datum(weights=make_tensor([1.0] * 4, "float64")), {}, "send float32 or int64"),
        (make_datum(weights=make_tensor([[1.0]] * 4)), {}, "no list of numbers"),
        (make_datum(weights=make_tensor([1.0] * 4, shape=[2, 3])), {}, "does not hold 4 values"),
        (make_datum(weights=make_tensor([], shape=[0, 10**30])), {}, "does not hold 0 values"),
        (
            make_datum(
                weights=make_tensor(
                    [], sparse_crow_indices=[0], sparse_col_indices=[], shape=[0, 10**30]
                )
            ),
            {},
            "cannot be unpacked here",
        ),
        (make_datum(target_tokens=make_tensor([1, 2, 3, 10**9], "int64")), {}, "1000000000"),
        (make_datum(target_tokens=make_tensor([2**63] * 4, "int64")), {}, "larger than int64"),
        (make_datum(target_tokens=make_tensor([2**70] * 4, "int64")), {}, "no list of whole"),
        (
            make_datum(weights=make_tensor([1.0], sparse_crow_indices=[0, 1], shape=[1, 1])),
            {},
            "weights: sparse_col_indices: the values are",
        ),
        (
            make_datum(
                weights=make_tensor(
                    [1.0], sparse_crow_indices=[0, 5], sparse_col_indices=[0], shape=[1, 1]
                )
            ),
            {},
            "do not fit",
        ),
        (
            make_datum(weights=make_tensor([], sparse_crow_indices=[], shape=[2**40, 2**40])),
            {},
            "unpack to more than",
        ),
    ],
)
def test_what_cannot_be_computed_breaks_its_promise_and_not_the_model(
    trainer: Trainer, datum: Any, fields: dict[str, Any], complaint: str
) -> None:
    """By a 4xx the SDK would take the model for lost."""
    trainer.learn(datum, **fields)
    broken = trainer.last
    assert trainer.status == 200
    assert (broken.status, broken.error_category) == (Status.FAILED, "user")
    assert complaint in broken.error
    trainer.learn()
    assert trainer.last.status == Status.QUEUED


def test_a_broken_promise_is_the_same_when_it_is_asked_again(trainer: Trainer) -> None:
    first = trainer.learn(loss_fn="none")
    trainer.seq = 0
    assert trainer.learn(loss_fn="none") == first
    trainer.seq = 0
    trainer.learn(loss_fn="other")
    assert trainer.status == 400
    assert Operation.objects.filter(seq=1).count() == 1


def test_the_log_goes_on_over_a_broken_promise(trainer: Trainer) -> None:
    Operation.objects.filter(seq=0).update(status=Status.DONE)
    run = trainer.run
    run.done_seq = 0
    run.save(update_fields=["done_seq"])
    trainer.learn(loss_fn="none")
    assert trainer.run.done_seq == 1


@pytest.mark.parametrize("seq", [0, -1, 2**31, "1", None])
def test_a_number_that_is_none_is_refused(trainer: Trainer, seq: Any) -> None:
    content = {"data": [make_datum()], "loss_fn": "cross_entropy"}
    answer = trainer.post(
        "forward_backward", forward_backward_input=content, model_id=trainer.model_id, seq_id=seq
    )
    assert (trainer.status, "seq_id" in answer["message"]) == (400, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model_id": "x"}'])
def test_a_body_that_is_none_is_refused(trainer: Trainer, body: bytes) -> None:
    trainer.send("POST", "forward_backward", body)
    assert trainer.status in (400, 404)


def read_step(operation: Operation) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(bytes(operation.payload or b""))
    return payload


def test_a_step_says_how_its_gradients_are_divided_and_told_of(trainer: Trainer) -> None:
    adam = {"learning_rate": 1e-3, "beta1": 0.9, "grad_clip_norm": 0.0}
    trainer.ask("optim_step", adam_params=adam)
    plain = read_step(trainer.last)
    assert plain["adam_params"]["learning_rate"] == 1e-3
    assert plain["grad_accumulation_normalization"] == "none"
    assert plain["emit_grad_norm_metrics"] == "off"
    told = {**adam, "emit_grad_norm_metrics": True}
    trainer.ask("optim_step", adam_params=told, grad_accumulation_normalization="num_loss_tokens")
    asked = read_step(trainer.last)
    assert asked["grad_accumulation_normalization"] == "num_loss_tokens"
    assert asked["emit_grad_norm_metrics"] == "basic"
    trainer.ask("optim_step", adam_params={"emit_grad_norm_metrics": "detailed"})
    assert read_step(trainer.last)["emit_grad_norm_metrics"] == "detailed"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"adam_params": {"learning_rate": -1}}, "adam_params.learning_rate is -1"),
        ({"adam_params": {"lr": 1}}, "adam_params.lr is unknown"),
        ({"adam_params": {"emit_grad_norm_metrics": "all"}}, "emit_grad_norm_metrics is 'all'"),
        ({"adam_params": {"emit_grad_norm_metrics": [[]]}}, "emit_grad_norm_metrics is [[]]"),
        ({"grad_accumulation_normalization": "mean"}, "send one of none, num_loss_tokens"),
    ],
)
def test_a_wrong_step_is_refused_and_uses_up_its_number(
    trainer: Trainer, fields: dict[str, Any], complaint: str
) -> None:
    answer = trainer.ask("optim_step", **fields)
    assert (trainer.status, complaint in answer["message"]) == (400, True)
    assert trainer.last.status == Status.REFUSED
