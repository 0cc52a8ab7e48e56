"""A project with a little of everything that lineage draws."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model("tiny/chat")


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    return make_version(alice)


@pytest.fixture
def suite(alice: Actor, version: DatasetVersion) -> EvalSuite:
    return EvalSuite.objects.create(
        project=alice.project,
        name="held out",
        dataset_version=version,
        graders=[{"name": "exact_match"}],
        sampling={"max_tokens": 8, "temperature": 0.0},
    )


def make_version(actor: Actor, number: int = 1, **columns: Any) -> DatasetVersion:
    dataset, _ = Dataset.objects.get_or_create(project=actor.project, name="sums")
    columns = {"filename": "a", "num_rows": 1200, **columns}
    return DatasetVersion.objects.create(
        project=actor.project, dataset=dataset, number=number, **columns
    )


def make_run(actor: Actor, base_model: BaseModel, name: str = "first", **columns: Any) -> Run:
    return Run.objects.create(
        project=actor.project,
        name=name,
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=8,
        **columns,
    )


def evaluate(suite: EvalSuite, checkpoint: Checkpoint, score: float) -> Evaluation:
    return Evaluation.objects.create(
        project=checkpoint.project,
        suite=suite,
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        status="done",
        scores={"exact_match": score},
    )


def save_many(run: Run, number: int, *, first: int = 1) -> list[Checkpoint]:
    return [
        make_checkpoint(run, name=f"step-{step}", step=step, seq=step)
        for step in range(first, first + number)
    ]
