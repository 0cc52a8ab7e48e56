"""Rows that serving needs: a project with its actor, a base model, a run and a checkpoint."""

from typing import Any

import pytest

from tests.webapp.cast import make_actor
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run, Session


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
