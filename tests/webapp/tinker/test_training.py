"""The training side of the wire: what is accepted, what is refused, and with which words."""

import json
from typing import Any

import numpy as np
import pytest
import zstandard

from tests.webapp.tinker.conftest import Program, make_datum, make_request
from training.requests import OWN_READINGS
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Origin, Run, Session
from webapp.wire import passes

Status = Operation.Status


def find_run() -> Run:
    return Run.objects.get()


def test_a_created_model_is_a_run_with_its_first_operation(
    program: Program, base_model: BaseModel
) -> None:
    model_id = program.open_model(base_model, rank=16, seed=3, train_unembed=False)
    run = find_run()
    assert (run.model_id, run.origin, run.rank) == (model_id, Origin.TINKER, 16)
    assert run.operations.get().kind == Operation.Kind.CREATE_MODEL
    assert run.lora["seed"] == 3
    assert not run.lora["train_unembed"]


def test_the_model_id_is_the_one_the_client_computes(
    program: Program, base_model: BaseModel
) -> None:
    session = program.open_session()
    for number in (0, 1):
        fields = {"session_id": session, "model_seq_id": number, "base_model": base_model.name}
        assert program.post("create_model", **fields)["model_id"] == f"{session}:train:{number}"


def test_a_model_created_again_is_the_same_promise(program: Program, base_model: BaseModel) -> None:
    fields = {"session_id": program.open_session(), "model_seq_id": 0}
    first = program.post("create_model", **fields, base_model=base_model.name)
    assert program.post("create_model", **fields, base_model=base_model.name) == first


def test_a_session_created_again_with_its_idempotency_key_is_the_same(program: Program) -> None:
    answers = [
        program.send("POST", "create_session", {"tags": ["a"]}, **{"X-Idempotency-Key": "k1"})
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert Session.objects.count() == 1


@pytest.mark.parametrize(
    ("lora", "complaint"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -3}, "rank is -3"),
        ({"rank": 10_000}, "choose one from 1 to 512"),
        ({"rank": "8"}, 'lora_config.rank is "8"'),
        ({"train_mlp": False, "train_attn": False, "train_unembed": False}, "Nothing to train"),
    ],
)
def test_a_lora_that_cannot_be_trained_is_refused(
    program: Program, base_model: BaseModel, lora: dict[str, Any], complaint: str
) -> None:
    answer = program.post(
        "create_model",
        session_id=program.open_session(),
        model_seq_id=0,
        base_model=base_model.name,
        lora_config=lora,
    )
    assert program.status == 400
    assert complaint in answer["detail"]
    assert not Run.objects.exists()


def test_an_unknown_base_model_is_refused_with_those_there_are(
    program: Program, base_model: BaseModel
) -> None:
    session = program.open_session()
    answer = program.post(
        "create_model", session_id=session, model_seq_id=0, base_model="acme/none"
    )
    assert program.status == 400
    assert "no base model acme/none" in answer["detail"]
    assert base_model.name in answer["detail"]


def test_a_missing_field_is_named(program: Program) -> None:
    answer = program.post("create_model", session_id=program.open_session())
    assert (program.status, answer["detail"]) == (400, "base_model is required.")


def test_the_model_is_described_to_a_client_on_this_machine(
    program: Program, model_id: str, base_model: BaseModel
) -> None:
    info = program.post("get_info", model_id=model_id)
    assert info["model_data"]["model_name"] == base_model.name
    assert info["model_data"]["tokenizer_id"] == base_model.path
    assert info["lora_rank"] == 8


def test_a_client_elsewhere_finds_the_tokenizer_by_name(program: Program, model_id: str) -> None:
    body = {"model_id": model_id}
    info = program.send("POST", "get_info", body, **{"X-Forwarded-For": "10.0.0.9"})
    assert "tokenizer_id" not in info["model_data"]


def test_a_forward_backward_is_stored_as_it_came(program: Program, model_id: str) -> None:
    promise = program.train(model_id, 1)
    operation = Operation.objects.get(seq=1)
    assert promise == {"request_id": f"op-{operation.pk}", "model_id": model_id}
    assert operation.num_tokens == 4
    _, _, request = passes.decode_forward_backward(bytes(operation.payload or b""))
    assert request.data[0].tokens.tolist() == [1, 2, 3, 4]


def test_a_compressed_body_is_the_same_operation(program: Program, model_id: str) -> None:
    first = program.train(model_id, 1)
    body = zstandard.compress(passes.encode_forward_backward(model_id, 1, make_request()))
    again = program.send("POST", "forward_backward", body, **{"Content-Encoding": "zstd"})
    assert again == first


def test_a_replayed_seq_with_other_bytes_is_refused_and_never_a_409(
    program: Program, model_id: str
) -> None:
    program.train(model_id, 1)
    answer = program.train(model_id, 1, make_request(make_datum(5)))
    assert program.status == 400
    assert "seq_id 1 was already used" in answer["detail"]
    assert Operation.objects.get(seq=1).status == Status.QUEUED


def test_a_garbage_protobuf_is_a_sentence(program: Program, model_id: str) -> None:
    answer = program.send("POST", "forward_backward", b"\xff\xfe garbage")
    assert program.status == 400
    assert "not a ForwardBackwardRequest" in answer["detail"]


def policy(**changes: Any) -> dict[str, Any]:
    floats = {name: np.ones(4, np.float32) for name in ("logprobs", "advantages")}
    return floats | changes


@pytest.mark.parametrize(
    ("loss_fn", "inputs", "complaint"),
    [
        ("cross_entropy", {"target_tokens": np.array([1, 2, 3, 5000])}, "target_tokens: 5000"),
        ("cross_entropy", {"target_tokens": np.array([1, 2, 3, -1])}, "target_tokens: -1"),
        ("cross_entropy", {"weights": np.ones(3, np.float32)}, "weights has the shape (3,)"),
        ("cross_entropy", {"weights": np.full(4, np.inf, np.float32)}, "weights: inf"),
        ("cross_entropy", {"target_tokens": np.ones((3, 2), np.int64)}, "target_tokens"),
        ("ppo", policy(target_tokens=np.ones((4, 2), np.int64)), "target_tokens has the shape"),
        ("importance_sampling", {}, "logprobs is missing"),
        ("ppo", policy(advantages=np.full(4, np.nan, np.float32)), "advantages: nan"),
        ("cispo", policy(logprobs=np.full(4, -np.inf, np.float32)), "logprobs: -inf"),
        ("dro", policy(advantages=np.ones(5, np.float32)), "advantages has the shape (5,)"),
    ],
)
def test_a_bad_datum_is_refused_by_index_and_field(
    program: Program, model_id: str, loss_fn: str, inputs: dict[str, Any], complaint: str
) -> None:
    good = policy() if loss_fn != "cross_entropy" else {}
    request = make_request(make_datum(**good), make_datum(**inputs), loss_fn=loss_fn)
    answer = program.train(model_id, 1, request)
    assert program.status == 400
    assert f"datum 1: {complaint}" in answer["detail"]


@pytest.mark.parametrize("token", [-1, 1000])
def test_token_ids_out_of_range_are_refused(program: Program, model_id: str, token: int) -> None:
    datum = make_datum()
    datum.tokens[2] = token
    answer = program.train(model_id, 1, make_request(datum))
    assert program.status == 400
    assert f"datum 0: tokens: {token} at position 2" in answer["detail"]


def test_a_sequence_longer_than_the_context_is_refused(program: Program, model_id: str) -> None:
    answer = program.train(model_id, 1, make_request(make_datum(257)))
    assert program.status == 400
    assert "257 tokens do not fit the model's context of 256" in answer["detail"]


@pytest.mark.parametrize("loss_fn", ["a2c", "mse", ""])
def test_an_unknown_loss_is_refused_with_those_there_are(
    program: Program, model_id: str, loss_fn: str
) -> None:
    answer = program.train(model_id, 1, make_request(loss_fn=loss_fn))
    assert program.status == 400
    assert "importance_sampling" in answer["detail"]


def test_no_datums_are_refused(program: Program, model_id: str) -> None:
    body = passes.encode_forward_backward(model_id, 1, make_request()).split(b"\x1a", 1)[0]
    answer = program.send("POST", "forward_backward", body)
    assert program.status == 400
    assert "at least one" in answer["detail"] or "loss_fn" in answer["detail"]


def test_a_refused_seq_is_noted_so_that_nobody_waits_for_it(
    program: Program, model_id: str
) -> None:
    program.train(model_id, 1, make_request(loss_fn="nonsense"))
    refused = Operation.objects.get(seq=1)
    assert refused.status == Status.REFUSED
    assert "nonsense" in refused.error
    program.post("optim_step", model_id=model_id, seq_id=2, adam_params={"learning_rate": -1})
    assert Operation.objects.get(seq=2).status == Status.REFUSED
    program.post("save_weights", model_id=model_id, seq_id=3, path="a/b")
    assert Operation.objects.get(seq=3).status == Status.REFUSED


def test_an_optimizer_step_keeps_every_parameter(program: Program, model_id: str) -> None:
    adam = {"learning_rate": 0.001, "beta1": 0.8, "grad_clip_norm": 1}
    program.post("optim_step", model_id=model_id, seq_id=1, adam_params=adam)
    assert program.status == 200
    payload = json.loads(bytes(Operation.objects.get(seq=1).payload or b""))
    assert payload["adam_params"] == {
        "learning_rate": 0.001,
        "beta1": 0.8,
        "beta2": 0.95,
        "eps": 1e-12,
        "weight_decay": 0.0,
        "grad_clip_norm": 1.0,
    }


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"adam_params": {"learning_rate": "x"}}, "adam_params.learning_rate"),
        ({"adam_params": {"beta1": 1.0}}, "adam_params.beta1 is 1.0"),
        ({"adam_params": {"momentum": 1.0}}, "adam_params.momentum is unknown"),
        ({"adam_params": []}, "adam_params is []"),
        ({"optimizer_params": {"type": "adamw"}}, "of the type adamw are not read here"),
    ],
)
def test_bad_optimizer_parameters_are_refused_by_name(
    program: Program, model_id: str, fields: dict[str, Any], complaint: str
) -> None:
    answer = program.post("optim_step", model_id=model_id, seq_id=1, **fields)
    assert program.status == 400
    assert complaint in answer["detail"]


def test_the_first_use_of_a_loss_of_our_own_is_noted_once(program: Program, model_id: str) -> None:
    for seq in (1, 2):
        request = make_request(make_datum(**policy()), loss_fn="stable_reinforce")
        program.train(model_id, seq, request)
        assert program.status == 200
    run = find_run()
    assert run.notes == {"stable_reinforce": OWN_READINGS["stable_reinforce"]}
    lines = [line.text for line in run.log_lines.all() if "stable_reinforce" in line.text]
    assert lines == [f"This run uses stable_reinforce: {run.notes['stable_reinforce']}."]
    told = program.read("get_server_capabilities")
    assert told["notes"] == OWN_READINGS
    assert "gspo" in told["losses"]


def test_nan_in_json_is_refused(program: Program, model_id: str) -> None:
    body = f'{{"model_id": "{model_id}", "seq_id": 1, "adam_params": {{"eps": NaN}}}}'
    answer = program.send("POST", "optim_step", body.encode())
    assert program.status == 400
    assert "adam_params.eps" in answer["detail"]


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(program: Program, body: bytes) -> None:
    answer = program.send("POST", "optim_step", body)
    assert program.status == 400
    assert "not" in answer["detail"]


def test_saves_are_queued_with_what_was_asked(program: Program, model_id: str) -> None:
    save = {"path": "000010", "ttl_seconds": 7200, "user_metadata": {"a": "b"}}
    program.post("save_weights", model_id=model_id, seq_id=1, overwrite=True, **save)
    program.post("save_weights_for_sampler", model_id=model_id, seq_id=2, path="s")
    ephemeral = {"sampling_session_seq_id": 0, "kind": "snapshot"}
    program.post("save_weights_for_sampler", model_id=model_id, seq_id=3, **ephemeral)
    payloads = [
        json.loads(bytes(operation.payload or b""))
        for operation in Operation.objects.filter(seq__gt=0).order_by("seq")
    ]
    assert payloads[0]["name"] == "000010"
    assert (payloads[0]["ttl_seconds"], payloads[0]["overwrite"]) == (7200, True)
    assert payloads[1]["name"] == "s"
    assert payloads[2]["sampling_session_seq_id"] == 0
    assert payloads[2]["is_ephemeral"]


@pytest.mark.parametrize(
    "fields", [{"path": ""}, {"path": "x" * 300}, {"path": "a", "ttl_seconds": 60}, {}]
)
def test_a_bad_save_is_refused(program: Program, model_id: str, fields: dict[str, Any]) -> None:
    answer = program.post("save_weights", model_id=model_id, seq_id=1, **fields)
    assert program.status == 400
    assert answer["detail"].split()[0] in ("path", "ttl_seconds")


def test_a_run_that_has_ended_takes_no_more_work(program: Program, model_id: str) -> None:
    session_id = model_id.split(":", maxsplit=1)[0]
    finish = {"reason": {"type": "success"}, "detail": "done"}
    program.post(f"sessions/{session_id}/finish", **finish)
    assert program.status == 204
    program.train(model_id, 1)
    assert program.status == 400
    assert find_run().status == Run.Status.DONE


def test_an_ephemeral_save_that_is_repeated_under_a_new_number_is_the_same_save(
    program: Program, model_id: str
) -> None:
    """The SDK takes the sampling session's next number for each attempt at one save."""
    fields = {"model_id": model_id, "seq_id": 1, "kind": "snapshot"}
    first = program.post("save_weights_for_sampler", **fields, sampling_session_seq_id=0)
    assert program.post("save_weights_for_sampler", **fields, sampling_session_seq_id=1) == first
    payload = json.loads(bytes(Operation.objects.get(seq=1).payload or b""))
    assert payload["sampling_session_seq_id"] == 0
    program.post("save_weights_for_sampler", model_id=model_id, seq_id=1, path="named")
    assert program.status == 400
