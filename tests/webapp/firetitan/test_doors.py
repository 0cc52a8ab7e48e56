"""Polls and heartbeats of trainers: answered as every client's, in the words of this one."""

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_job
from training.types import ForwardBackwardOutput
from webapp.asgi import find_door
from webapp.core.threads import App
from webapp.firetitan.doors import find_trainer_path, open_doors
from webapp.firetitan.results import write_json
from webapp.fleet.models import BaseModel
from webapp.runs import queue
from webapp.wire import heartbeats, passes, waiting
from webapp.wire.heartbeats import Heartbeats
from webapp.wire.waiting import ParkedPolls

pytestmark = pytest.mark.django_db(transaction=True)

OUTPUT = ForwardBackwardOutput(
    logprobs=[np.array([-1.5, -0.5], np.float32), np.array([[-1.0, -2.0]], np.float32)],
    metrics={"loss:sum": 2.0},
)


@pytest.fixture
async def doors() -> AsyncIterator[dict[str, App]]:
    polls = ParkedPolls(hold_seconds=0.0)
    beats = Heartbeats(polls.threads)
    yield open_doors(polls, beats)
    await polls.look(lambda _: connection.close(), None)
    polls.threads.shutdown()


@pytest.fixture
def trainer(program: Program, base_model: BaseModel) -> Trainer:
    made = Trainer(program=program, job=make_job(program, base_model))
    made.open_session()
    made.open_model()
    return made


async def knock(
    door: App, secret: str, accept: str = "application/json", **fields: Any
) -> tuple[int, str, bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-api-key", secret.encode()), (b"accept", accept.encode())]
    await door({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)
    start, end = sent
    return start["status"], dict(start["headers"])[b"content-type"].decode(), end["body"]


def end_pass(trainer: Trainer) -> str:
    request_id: str = trainer.learn()["request_id"]
    queue.lease_run(trainer.run, worker="w1")
    for result in (b"{}", passes.encode_output(OUTPUT)):
        (operation,) = queue.next_operations(trainer.run, worker="w1")
        kind = passes.PROTOBUF if operation.seq else passes.JSON
        queue.finish_operation(operation, worker="w1", result=result, content_type=kind)
    return request_id


async def test_a_result_comes_as_its_reader_reads_it(
    trainer: Trainer, doors: dict[str, App]
) -> None:
    request_id = await sync_to_async(end_pass)(trainer)
    door, secret = doors[waiting.PATH], trainer.program.secret
    both = "application/x-protobuf, application/json"
    status, kind, body = await knock(door, secret, accept=both, request_id=request_id)
    assert (status, kind) == (200, passes.PROTOBUF)
    assert passes.decode_output(body).metrics == {"loss:sum": 2.0}
    status, kind, body = await knock(door, secret, request_id=request_id)
    assert (status, kind) == (200, passes.JSON)
    assert json.loads(body) == json.loads(write_json(passes.encode_output(OUTPUT)))


def test_a_result_in_json_has_the_shapes_of_its_data() -> None:
    answer = json.loads(write_json(passes.encode_output(OUTPUT)))
    assert answer["metrics"] == {"loss:sum": 2.0}
    assert [output["logprobs"] for output in answer["loss_fn_outputs"]] == [
        {"data": [-1.5, -0.5], "dtype": "float32", "shape": [2]},
        {"data": [-1.0, -2.0], "dtype": "float32", "shape": [1, 2]},
    ]


def test_a_vector_in_json_has_its_name() -> None:
    empty = [np.zeros(0, np.float32)]
    vectors = [np.array([0.5, 1.0], np.float32)]
    told = ForwardBackwardOutput(logprobs=empty, metrics={"loss:sum": 0.0}, vectors=vectors)
    (output,) = json.loads(write_json(passes.encode_output(told)))["loss_fn_outputs"]
    assert output == {"embedding": {"data": [0.5, 1.0], "dtype": "float32", "shape": [2]}}


async def test_who_waits_is_told_to_ask_again(trainer: Trainer, doors: dict[str, App]) -> None:
    promise = await sync_to_async(trainer.learn)()
    request_id = promise["request_id"]
    status, _, body = await knock(doors[waiting.PATH], trainer.program.secret, **promise)
    assert (status, json.loads(body)["type"]) == (408, "try_again")
    assert json.loads(body)["request_id"] == request_id


async def test_a_broken_promise_says_whose_mistake_it_was(
    trainer: Trainer, doors: dict[str, App]
) -> None:
    promise = await sync_to_async(trainer.learn)(loss_fn="none")
    status, _, body = await knock(doors[waiting.PATH], trainer.program.secret, **promise)
    answer = json.loads(body)
    assert (status, answer["category"]) == (200, "user")
    assert "'none' is not known" in answer["error"]


async def test_without_a_right_key_this_clients_variable_is_named(
    trainer: Trainer, doors: dict[str, App]
) -> None:
    for path in (waiting.PATH, heartbeats.PATH):
        for secret in ("", "wrong"):
            status, _, body = await knock(doors[path], secret, request_id="op-1")
            assert (status, b"FIREWORKS_API_KEY" in body) == (401, True)


async def test_a_heartbeat_is_heard_while_its_job_is_there(
    trainer: Trainer, doors: dict[str, App]
) -> None:
    door, secret = doors[heartbeats.PATH], trainer.program.secret
    status, _, body = await knock(door, secret, session_id=trainer.session_id)
    assert (status, json.loads(body)) == (200, {"type": "session_heartbeat"})


async def test_after_the_end_of_its_job_no_heartbeat_is_heard(
    trainer: Trainer, doors: dict[str, App]
) -> None:
    await sync_to_async(trainer.program.delete)("rlorTrainerJobs/j1")
    door, secret = doors[heartbeats.PATH], trainer.program.secret
    status, _, _ = await knock(door, secret, session_id=trainer.session_id)
    assert status == 410


def test_the_doors_stand_at_the_paths_of_every_job() -> None:
    trainer = "/training/v1/rlorTrainerJobs/prj-1/job-1"
    for path in (waiting.PATH, heartbeats.PATH):
        assert find_trainer_path(trainer + path) == path
        assert find_door({"path": trainer + path}) is not None
        assert find_door({"path": path}) is not None
    for path in (f"{trainer}/api/v1/forward", f"/x{trainer}{waiting.PATH}", "/training/v1/x"):
        assert find_door({"path": path}) is None
