"""Suites and evaluations as people ask for them. Building and answering: tests/workers/serving."""

from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.evals import services
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run

Status = Evaluation.Status
ITEMS = [
    {"messages": [{"role": "user", "content": str(n)}], "target": str(n), "row": n}
    for n in range(3)
]


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return BaseModel.objects.create(path="/models/tiny")


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    dataset = Dataset.objects.create(project=alice.project, name="rows")
    return DatasetVersion.objects.create(
        project=alice.project,
        dataset=dataset,
        number=1,
        status=DatasetVersion.Status.READY,
        filename="rows.jsonl",
        format="jsonl",
    )


@pytest.fixture
def suite(alice: Actor, version: DatasetVersion) -> EvalSuite:
    made = services.create_suite(
        actor=alice, name="held out", dataset_version=version, graders=[{"name": "exact_match"}]
    )
    services.mark_built(made, ITEMS)
    made.refresh_from_db()
    return made


def begin(evaluation: Evaluation) -> Evaluation:
    assert services.begin_evaluation(evaluation)
    evaluation.refresh_from_db()
    return evaluation


def answer(evaluation: Evaluation, index: int, score: float) -> None:
    services.record_result(evaluation, index, served={"server": "s"}, scores={"exact_match": score})
    services.settle(evaluation)
    evaluation.refresh_from_db()


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"name": " "}, "name"),
        ({"name": "held out"}, "name"),
        ({"held_out_share": 0}, "held_out_share"),
        ({"held_out_share": 1.1}, "held_out_share"),
        ({"held_out_by": "row number"}, "held_out_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 2001}, "limit"),
        ({"graders": []}, "graders"),
        ({"graders": [{"name": "taste"}]}, "graders"),
        ({"graders": [{"name": "regex"}, {"name": "regex"}]}, "graders"),
        ({"graders": [{"name": "regex", "pattern": "("}]}, "graders"),
        ({"graders": [{"name": "numeric", "taste": 1}]}, "graders"),
        ({"graders": [{"name": "llm_judge", "judge": "tiny"}]}, "graders"),
        ({"sampling": {"num_samples": 0}}, "num_samples"),
        ({"sampling": {"num_samples": 65}}, "num_samples"),
        ({"sampling": {"num_samples": 4, "pass_at": [5]}}, "pass_at"),
        ({"dataset_version": None}, "dataset_version"),
        ({"spec": {"source": "built_in", "name": "bfcl_simple"}}, "dataset_version"),
        ({"dataset_version": None, "spec": {"source": "taste"}}, "source"),
        ({"dataset_version": None, "spec": {"source": ["items"]}}, "source"),
        ({"dataset_version": None, "spec": {"source": "reasoning_gym"}}, "source"),
        ({"dataset_version": None, "spec": {"source": "built_in", "name": "mmlu"}}, "source"),
        ({"dataset_version": None, "spec": {"source": "items", "items": []}}, "source"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused_by_field(
    suite: EvalSuite, alice: Actor, columns: dict[str, Any], field: str
) -> None:
    wanted: dict[str, Any] = {
        "name": "another",
        "dataset_version": suite.dataset_version,
        "graders": [{"name": "contains"}],
    }
    with pytest.raises(UserError) as refused:
        services.create_suite(actor=alice, **wanted | columns)
    assert refused.value.field == field


def test_a_version_that_is_not_ready_makes_no_suite(alice: Actor, version: DatasetVersion) -> None:
    version.status = DatasetVersion.Status.VALIDATING
    with pytest.raises(UserError, match="not ready"):
        services.create_suite(
            actor=alice, name="early", dataset_version=version, graders=[{"name": "contains"}]
        )


def test_a_suite_is_frozen_once(suite: EvalSuite) -> None:
    assert not services.mark_built(suite, ITEMS[:1])
    suite.refresh_from_db()
    assert (suite.num_items, len(suite.digest)) == (3, 64)


def test_greedy_is_how_a_suite_asks_where_nothing_else_is_said(suite: EvalSuite) -> None:
    assert suite.sampling["temperature"] == 0.0


def test_every_item_is_asked_with_the_suites_settings(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    evaluation = begin(services.request_evaluation(actor=alice, suite=suite, base_model=base_model))
    calls = list(SamplingCall.objects.all())
    assert [call.about for call in calls] == [
        {"evaluation": evaluation.pk, "index": index, "sample": 0} for index in range(3)
    ]
    assert {call.payload["params"]["temperature"] for call in calls} == {0.0}
    assert evaluation.served == {"sampling": suite.sampling, "suite": suite.digest}


def test_the_last_answer_ends_it_with_the_mean(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    evaluation = begin(services.request_evaluation(actor=alice, suite=suite, base_model=base_model))
    for index, score in enumerate((1.0, 0.0)):
        answer(evaluation, index, score)
    assert (evaluation.status, evaluation.num_done) == (Status.RUNNING, 2)
    answer(evaluation, 2, 1.0)
    assert evaluation.status == Status.DONE
    assert evaluation.scores == {"exact_match": pytest.approx(2 / 3)}
    assert evaluation.ended_at is not None
    assert evaluation.served["server"] == "s"


def test_an_answer_that_comes_twice_counts_once(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    evaluation = begin(services.request_evaluation(actor=alice, suite=suite, base_model=base_model))
    for _ in range(3):
        answer(evaluation, 0, 1.0)
    assert (evaluation.status, evaluation.num_done) == (Status.RUNNING, 1)


def test_a_late_answer_does_not_wake_a_cancelled_evaluation(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    evaluation = begin(services.request_evaluation(actor=alice, suite=suite, base_model=base_model))
    services.cancel_evaluation(actor=alice, evaluation=evaluation)
    for index in range(3):
        answer(evaluation, index, 1.0)
    assert (evaluation.status, evaluation.scores) == (Status.CANCELLED, {})


def test_a_stranger_cannot_cancel_it(suite: EvalSuite, alice: Actor, base_model: BaseModel) -> None:
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    services.cancel_evaluation(actor=make_actor("charlie"), evaluation=evaluation)
    evaluation.refresh_from_db()
    assert evaluation.status == Status.QUEUED


def test_a_runs_own_evaluation_needs_no_person(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    run = Run.objects.create(
        project=alice.project, name="first", origin=Origin.BROWSER, base_model=base_model, rank=8
    )
    checkpoint = make_checkpoint(run)
    evaluation = services.request_evaluation(actor=None, suite=suite, checkpoint=checkpoint)
    assert (evaluation.run, evaluation.created_by) == (run, None)
    assert evaluation.base_model == base_model


def test_nothing_and_deleted_weights_cannot_be_evaluated(
    suite: EvalSuite, alice: Actor, base_model: BaseModel
) -> None:
    with pytest.raises(UserError, match="Choose a checkpoint"):
        services.request_evaluation(actor=alice, suite=suite)
    run = Run.objects.create(
        project=alice.project, name="first", origin=Origin.BROWSER, base_model=base_model, rank=8
    )
    going = make_checkpoint(run)
    Checkpoint.objects.filter(pk=going.pk).update(deleted_at=now())  # by somebody, at this moment
    with pytest.raises(UserError, match="was deleted"):
        services.request_evaluation(actor=alice, suite=suite, checkpoint=going)


def test_a_suite_that_could_not_be_built_is_not_evaluated(
    alice: Actor, version: DatasetVersion, base_model: BaseModel
) -> None:
    made = services.create_suite(
        actor=alice, name="broken", dataset_version=version, graders=[{"name": "contains"}]
    )
    services.mark_suite_failed(made, "No row.")
    made.refresh_from_db()
    with pytest.raises(UserError, match=r"No row\."):
        services.request_evaluation(actor=alice, suite=made, base_model=base_model)
