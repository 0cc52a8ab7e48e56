"""10,000 bodies that no SDK sends: a sentence for each, nothing half done, and the run goes on.

The bodies are the same in every run. `pytest --hypothesis-profile search` looks for new ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
import zstandard
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from django.db.models import Model
from django.urls.resolvers import RegexPattern, URLPattern
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.webapp.tinker import fuzz
from tests.webapp.tinker.bodies import DOORS, EVERYTHING, TEMPLATES
from tests.webapp.tinker.conftest import Program, make_request
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.fleet.models import BaseModel
from webapp.runs import queue
from webapp.runs.models import CustomLoss, LogLine, Operation, Run, Session
from webapp.tinker.futures import ParkedSamplers
from webapp.tinker.urls import urlpatterns
from webapp.wire import passes
from webapp.wire.door import Door
from webapp.wire.heartbeats import Heartbeats
from webapp.wire.waiting import ParkedPolls

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

# Each test has one world for all of its bodies: what they leave behind adds up.
one_world = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def bodies(number: int) -> settings:
    return settings(max_examples=number, suppress_health_check=one_world)


TABLES: tuple[type[Model], ...] = (
    *(Operation, Session, Run, LogLine, SamplingSession, SamplingCall, Checkpoint, CustomLoss),
)
COUNTS = "SELECT (SELECT COUNT(*) FROM runs_operation WHERE status = 'refused')" + "".join(
    f", (SELECT COUNT(*) FROM {table._meta.db_table})" for table in TABLES
)
INTERNALS = ("Traceback", 'File "', "Internal error", "object at 0x", "<class", "DoesNotExist")
MOST_CHARACTERS = 1000
MOVING = ("last_request_at", "done_seq")  # a refusal is noted in the log, which goes on


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How many rows there are, and what is in the program's own."""

    refused: int
    operations: int
    rest: Any


class World:
    """A program with one of everything that a body can name."""

    def __init__(self, program: Program, base_model: BaseModel) -> None:
        self.program, self.base_model = program, base_model
        self.model_id = program.open_model(base_model)
        self.session = self.model_id.split(":", maxsplit=1)[0]
        fields = {"session_id": self.session, "sampling_session_seq_id": 0}
        opened = program.post("create_sampling_session", **fields, base_model=base_model.name)
        self.sampler = opened["sampling_session_id"]
        self.other_session = program.open_session()
        self.run = Run.objects.get()
        self.checkpoint = Checkpoint.objects.create(
            project=self.run.project,
            run=self.run,
            base_model=base_model,
            kind=Checkpoint.Kind.TRAINING,
            name="one",
            seq=0,
            step=0,
            path="checkpoints/one",
            digest="d" * 64,
            size_bytes=1,
            rank=8,
            has_optimizer=True,
        )
        self.request_id = f"op-{Operation.objects.get(run=self.run).pk}"
        self.seq = 0
        self.work()

    def work(self) -> None:
        """What a worker does: every operation that can be executed now is, and ends."""
        queue.lease_run(self.run, worker="w1")
        while operations := queue.next_operations(self.run, worker="w1"):
            for operation in operations:
                if operation.kind == Operation.Kind.FORWARD_BACKWARD:
                    passes.decode_forward_backward(bytes(operation.payload or b""))
                queue.finish_operation(
                    operation, worker="w1", result=b"{}", content_type=passes.JSON
                )
        self.seq = self.run.done_seq + 1

    def goes_on(self) -> bool:
        """After everything that was sent, the next right request is executed."""
        self.work()
        seq = self.seq
        assert self.program.train(self.model_id, seq)["request_id"]
        self.work()
        return bool(Operation.objects.get(run=self.run, seq=seq).status == Operation.Status.DONE)

    def look(self) -> Standing:
        """All that a body could change, in one query a table: it is asked 10,000 times."""
        with connection.cursor() as cursor:
            cursor.execute(COUNTS)
            counts = cursor.fetchone()
            rows = []
            for table, key in ((Run, self.run.pk), (Session, self.session)):
                cursor.execute(f"SELECT * FROM {table._meta.db_table} WHERE id = %s", [key])
                names = [column[0] for column in cursor.description]
                row = zip(names, cursor.fetchone(), strict=True)
                rows.append([column for column in row if column[0] not in MOVING])
        return Standing(refused=counts[0], operations=counts[1], rest=(*counts[2:], *rows))

    def check_unchanged(self, before: Standing) -> None:
        """A refused body leaves a refused number in the log at most."""
        after = self.look()
        noted = after.refused - before.refused
        assert noted in (0, 1)
        assert after.operations - before.operations == noted
        assert after.rest == before.rest


@pytest.fixture
def world(program: Program, base_model: BaseModel) -> World:
    return World(program, base_model)


def refuse_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} in an answer: no client reads it")


def read_strictly(content: bytes) -> Any:
    return json.loads(content, parse_constant=refuse_constant) if content else None


def check_refusal(status: int, content: bytes) -> None:
    detail = read_strictly(content)["detail"]
    assert 400 <= status < 500, detail
    assert isinstance(detail, str)
    assert 10 < len(detail) <= MOST_CHARACTERS
    assert "\0" not in detail
    assert [word for word in INTERNALS if word in detail] == [], detail


def send(world: World, path: str, body: bytes, method: str = "POST", **headers: str) -> None:
    """One body, and what has to be true of every one."""
    before = world.look()
    response = world.program.client.generic(
        method,
        f"/api/v1/{path}",
        body,
        content_type=passes.PROTOBUF if path == "forward_backward" else passes.JSON,
        headers={"X-API-Key": world.program.secret, **headers},
    )
    if response.status_code < 300:
        read_strictly(response.content)
        return
    check_refusal(response.status_code, response.content)
    world.check_unchanged(before)


def test_a_protobuf_body_may_be_anything_and_the_run_goes_on(world: World) -> None:
    @bodies(5000)
    @given(data=st.data())
    def send_one(data: st.DataObject) -> None:
        body = data.draw(fuzz.messages(world.model_id, world.seq), "body")
        travelling, headers = data.draw(fuzz.encoded(body), "encoded")
        send(world, "forward_backward", travelling, **headers)
        world.seq += 1

    send_one()
    assert world.goes_on()


def list_calls() -> list[str]:
    """Every path of the wire, those that answer GET only too: they have to say so."""
    patterns = [entry.pattern for entry in urlpatterns if isinstance(entry, URLPattern)]
    return [str(pattern) for pattern in patterns if not isinstance(pattern, RegexPattern)]


def fill(template: Any, world: World) -> Any:
    """With the world's own names, however deep they are to stand."""
    known = {
        "$session": world.session,
        "$model": world.model_id,
        "$sampler": world.sampler,
        "$checkpoint": world.checkpoint.tinker_path,
        "$number": world.seq,
        "$request": world.request_id,
    }
    if isinstance(template, Mapping):
        return {key: fill(value, world) for key, value in template.items()}
    if isinstance(template, str):
        return known.get(template, template)
    return [fill(item, world) for item in template] if isinstance(template, list) else template


def address(call: str, world: World) -> str:
    path = call.replace("<session_id>", world.other_session).replace("<run_id>", world.model_id)
    path = path.replace("<kind>", "weights").replace("<name>", "one")
    return path.replace("<sampler_id>", world.sampler)


def test_a_json_body_may_be_anything_and_the_run_goes_on(world: World) -> None:
    calls = list_calls()
    assert set(TEMPLATES) <= set(calls)

    @bodies(4100)
    @given(data=st.data())
    def send_one(data: st.DataObject) -> None:
        call = data.draw(st.one_of(st.sampled_from(calls), st.sampled_from([*TEMPLATES])), "call")
        template = fill(TEMPLATES.get(call, EVERYTHING), world)
        body = data.draw(fuzz.json_bodies(template), "body")
        method = "PUT" if call.endswith(("ttl", "project")) else "POST"
        send(world, address(call, world), body, method)
        world.seq += 1

    send_one()
    assert world.goes_on()
    for path in ("training_runs", "checkpoints", "sessions", f"sessions/{world.session}"):
        answer = world.program.client.get(
            f"/api/v1/{path}?limit=1000", headers={"X-API-Key": world.program.secret}
        )
        assert answer.status_code == 200
        read_strictly(answer.content)


class Here(Door):
    """On the test's own thread, whose connection holds the test's transaction."""

    async def look(self, read: Any, argument: Any) -> Any:
        return await sync_to_async(read)(argument)


class PollsHere(Here, ParkedPolls):
    pass


class SamplersHere(Here, ParkedSamplers):
    pass


class HeartbeatsHere(Here, Heartbeats):
    pass


def test_what_is_answered_before_django_may_be_anything(world: World) -> None:
    polls, samplers = PollsHere(hold_seconds=0), SamplersHere(hold_seconds=0)
    doors: Mapping[str, Door] = {
        "retrieve_future": polls,
        "retrieve_futures": samplers,
        "session_heartbeat": HeartbeatsHere(),
    }

    @bodies(900)
    @given(data=st.data())
    def knock(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*DOORS]), "door")
        body = data.draw(fuzz.json_bodies(fill(DOORS[name], world)), "body")
        status, content = async_to_sync(ask)(doors[name], world.program, body)
        if status >= 400 and status != 408:
            check_refusal(status, content)
            assert status in (400, 404, 410)
        else:
            read_strictly(content)

    before = world.look()
    knock()
    world.check_unchanged(before)
    assert (polls.waiting, samplers.waiting) == ({}, {})


async def ask(door: Door, program: Program, body: bytes) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-api-key", program.secret.encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/", "headers": headers}
    await door(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


def test_a_bomb_is_refused(world: World) -> None:
    bomb = zstandard.compress(b"\0" * (passes.MAX_BODY_BYTES + 1))
    assert len(bomb) < 10_000
    send(world, "forward_backward", bomb, **{"Content-Encoding": "zstd"})
    right = zstandard.compress(passes.encode_forward_backward(world.model_id, 1, make_request()))
    send(world, "forward_backward", right + bomb, **{"Content-Encoding": "zstd"})
    assert world.goes_on()
