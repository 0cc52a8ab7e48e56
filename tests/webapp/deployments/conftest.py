"""Rows that serving needs: a project with its actor, a base model, a run and a checkpoint."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, sign_in
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment, HotLoad, Replica, SamplingCall
from webapp.deployments.pieces import Piece
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run, Session

# An answer of two tokens, and the pieces that tell it.
RESULT: dict[str, Any] = {
    "sequences": [
        {
            "tokens": [5, 6],
            "logprobs": [-1.0, -2.0],
            "pieces": ["Hi", " you"],
            "text": "Hi you",
            "stop_reason": "stop",
        }
    ]
}
FIRST = Piece(index=0, start=0, at=0, tokens=[5], logprobs=[-1.0], texts=["Hi"], text="Hi")
SECOND = Piece(index=0, start=1, at=2, tokens=[6], logprobs=[-2.0], texts=[" you"], text=" you")


def make_checkpoint(run: Run, **columns: Any) -> Checkpoint:
    defaults = {
        "project": run.project,
        "run": run,
        "base_model": run.base_model,
        "name": "step-10",
        "kind": Checkpoint.Kind.SAMPLER,
        "step": 10,
        "seq": 20,
        "path": "checkpoints/none",
        "digest": "d1ge57" * 10,
        "size_bytes": 1000,
        "rank": 8,
        "probe": {"tokens": [1, 2, 3], "logprobs": [-1.0, -2.0]},
    }
    return Checkpoint.objects.create(**defaults | columns)


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def charlie(db: None) -> Actor:
    """A stranger to Alice's project."""
    return make_actor("charlie")


@pytest.fixture
def base_model(db: None) -> BaseModel:
    model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=model, name="tiny/chat")
    return model


@pytest.fixture
def run(alice: Actor, base_model: BaseModel) -> Run:
    return Run.objects.create(
        project=alice.project, name="first", origin=Origin.BROWSER, base_model=base_model, rank=8
    )


@pytest.fixture
def checkpoint(run: Run) -> Checkpoint:
    return make_checkpoint(run)


@pytest.fixture
def session(alice: Actor) -> Session:
    return Session.objects.create(project=alice.project, user=alice.user)


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def deployment(alice: Actor, checkpoint: Checkpoint) -> Deployment:
    return make_deployment(alice, checkpoint)


def make_deployment(actor: Actor, checkpoint: Checkpoint, name: str = "calls") -> Deployment:
    return Deployment.objects.create(
        project=actor.project,
        name=name,
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        status=Deployment.Status.READY,
    )


def make_load(checkpoint: Checkpoint, number: int = 1, **columns: object) -> HotLoad:
    measured = {
        "status": HotLoad.Status.READY,
        "load_milliseconds": 41.0,
        "probe_milliseconds": 12.0,
        "server_logprobs": [-1.0, -2.000002],
        "max_difference": 2e-6,
        "tolerance": 1e-3,
    }
    return HotLoad.objects.create(
        checkpoint=checkpoint,
        server="s/1",
        adapter_name=f"{checkpoint.pk}-{number}",
        **measured | columns,
    )


def make_replica(name: str = "vllm-tiny", **columns: Any) -> Replica:
    defaults = {
        "engine": Replica.Engine.VLLM,
        "status": Replica.Status.READY,
        "start": "a1",
        "version": "0.32.0",
        "started_at": now(),
        "ready_at": now(),
    }
    return Replica.objects.create(name=name, **defaults | columns)


def make_call(actor: Actor, deployment: Deployment, **columns: Any) -> SamplingCall:
    """One that was begun a second before it ended, and drew its first token half-way."""
    ended = columns.get("finished_at")
    times = {}
    if ended is not None:
        times = {
            "created_at": ended - timedelta(seconds=1),
            "first_token_at": ended - timedelta(seconds=0.5),
        }
    return SamplingCall.objects.create(
        project=actor.project,
        purpose=SamplingCall.Purpose.OPENAI,
        base_model=deployment.base_model,
        deployment=deployment,
        payload={},
        digest="",
        **times | columns,
    )


def read(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return response.content.decode()
