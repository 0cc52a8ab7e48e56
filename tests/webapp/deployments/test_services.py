"""Deployments are made, pointed at other weights and stopped; questions are checked when asked."""

from typing import Any

import pytest
from django.db import IntegrityError
from django.utils.timezone import now

from tests.webapp.deployments.conftest import make_checkpoint, make_load, make_replica
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.deployments import replicas, services
from webapp.deployments.loads import Proof, begin_load, lose_load, lose_loads, prove_load
from webapp.deployments.models import Deployment, HotLoad
from webapp.deployments.queries import find_last_load, find_proof
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

Status = Deployment.Status
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def deployment(alice: Actor, checkpoint: Checkpoint) -> Deployment:
    return services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)


def test_a_new_deployment_waits_to_be_loaded(deployment: Deployment, base_model: BaseModel) -> None:
    assert (deployment.status, deployment.base_model) == (Status.LOADING, base_model)


def test_a_name_is_used_once_in_a_project(
    deployment: Deployment, alice: Actor, charlie: Actor, base_model: BaseModel
) -> None:
    with pytest.raises(UserError, match="support already"):
        services.create_deployment(actor=alice, name=" support ", base_model=base_model)
    theirs = services.create_deployment(actor=charlie, name="support", base_model=base_model)
    assert theirs.project == charlie.project


@pytest.mark.parametrize(
    ("columns", "field"), [({"name": " "}, "name"), ({"name": "support"}, "checkpoint")]
)
def test_a_deployment_needs_a_name_and_something_to_serve(
    alice: Actor, columns: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as refused:
        services.create_deployment(actor=alice, **columns)
    assert refused.value.field == field


def test_a_deleted_checkpoint_cannot_be_served(alice: Actor, run: Run) -> None:
    gone = make_checkpoint(run, deleted_at=now())
    with pytest.raises(UserError, match="was deleted"):
        services.create_deployment(actor=alice, name="support", checkpoint=gone)


def test_weights_that_are_deleted_as_they_are_chosen_are_not_served(
    deployment: Deployment, alice: Actor, run: Run
) -> None:
    chosen = make_checkpoint(run, name="step-20", seq=40)
    Checkpoint.objects.filter(pk=chosen.pk).update(deleted_at=now())  # by somebody else
    with pytest.raises(UserError, match="step-20 was deleted"):
        services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=chosen)
    with pytest.raises(UserError, match="step-20 was deleted"):
        services.create_deployment(actor=alice, name="other", checkpoint=chosen)
    assert Deployment.objects.get() == deployment


def test_a_checkpoint_of_another_base_model_is_refused(
    deployment: Deployment, alice: Actor, run: Run
) -> None:
    other = BaseModel.objects.create(path="/models/other")
    stranger = make_checkpoint(run, name="other", base_model=other)
    with pytest.raises(UserError, match="belongs to"):
        services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=stranger)


def test_a_load_that_was_overtaken_by_another_choice_does_not_make_it_ready(
    deployment: Deployment, alice: Actor, run: Run
) -> None:
    seen_by_the_sampler = Deployment.objects.get(pk=deployment.pk)
    newer = make_checkpoint(run, name="step-20")
    services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=newer)
    assert not services.mark_ready(seen_by_the_sampler, None)
    assert not services.mark_failed(seen_by_the_sampler, "It differs.")
    deployment.refresh_from_db()
    assert deployment.status == Status.LOADING


def test_a_stopped_deployment_answers_nobody_until_it_is_started(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint
) -> None:
    services.stop_deployment(actor=alice, deployment=deployment)
    with pytest.raises(UserError, match="is stopped"):
        services.ask(actor=alice, deployment=deployment, messages=MESSAGES)
    services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=checkpoint)
    assert services.ask(actor=alice, deployment=deployment, messages=MESSAGES).pk


def test_a_failed_deployment_says_why_it_does_not_answer(
    deployment: Deployment, alice: Actor
) -> None:
    services.mark_failed(deployment, "The files were changed.")
    deployment.refresh_from_db()
    with pytest.raises(UserError, match="The files were changed"):
        services.ask(actor=alice, deployment=deployment, messages=MESSAGES)


def test_another_projects_deployment_is_not_changed(deployment: Deployment, charlie: Actor) -> None:
    services.stop_deployment(actor=charlie, deployment=deployment)
    deployment.refresh_from_db()
    assert deployment.status == Status.LOADING


def test_what_was_ready_is_loaded_again_by_a_new_server(deployment: Deployment) -> None:
    services.mark_ready(deployment, None)
    assert services.reload_deployments() == 1
    deployment.refresh_from_db()
    assert deployment.status == Status.LOADING


def test_two_models_asked_side_by_side_draw_with_the_same_seed(
    alice: Actor, checkpoint: Checkpoint, base_model: BaseModel
) -> None:
    one = services.ask(actor=alice, checkpoint=checkpoint, messages=MESSAGES)
    other = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)
    assert one.payload["params"]["seed"] == other.payload["params"]["seed"]
    assert (one.checkpoint, other.checkpoint) == (checkpoint, None)
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "Write a message"),
        ([{"role": "user", "content": " "}], "Message 1 is empty"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "answer"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused(
    alice: Actor, base_model: BaseModel, messages: list[dict[str, str]], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        services.ask(actor=alice, base_model=base_model, messages=messages)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": True}, "seed"),
        ({"num_samples": 17}, "num_samples"),
        ({"warmth": 1}, "warmth"),
        ({"stop": [1, "x"]}, "stop"),
        ({"stop": [None]}, "stop"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    alice: Actor, base_model: BaseModel, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as refused:
        services.ask(actor=alice, base_model=base_model, messages=MESSAGES, params=params)
    assert refused.value.field == field


def test_a_stop_string_may_stand_alone() -> None:
    assert services.check_params({"stop": "END"}) == {"stop": ["END"]}


def test_every_load_of_a_checkpoint_has_a_name_of_its_own(checkpoint: Checkpoint) -> None:
    first = begin_load(checkpoint, server="s/1")
    first.delete()
    second, third = begin_load(checkpoint, server="s/1"), begin_load(checkpoint, server="s/2")
    assert second.adapter_name != third.adapter_name
    assert checkpoint.digest[:8] in third.adapter_name


def test_the_proof_that_is_shown_is_the_newest_that_is_served(deployment: Deployment) -> None:
    checkpoint = deployment.checkpoint
    assert checkpoint is not None
    assert find_last_load(deployment) is None
    first, second = begin_load(checkpoint, server="s/1"), begin_load(checkpoint, server="s/1")
    assert find_proof(checkpoint) is None
    assert find_last_load(deployment) == second
    HotLoad.objects.filter(pk=first.pk).update(status=HotLoad.Status.READY)
    assert find_last_load(deployment) == first
    lose_load(first)
    assert find_proof(checkpoint) is None


def test_a_server_that_ends_loses_only_its_own_loads(checkpoint: Checkpoint) -> None:
    for server in ("one/1", "one/2", "one-2/1", "other/1"):
        begin_load(checkpoint, server=server)
    assert lose_loads(of="one") == 2
    lost = HotLoad.objects.filter(status=HotLoad.Status.LOST)
    assert {load.server for load in lost} == {"one/1", "one/2"}


@pytest.mark.django_db(transaction=True)
def test_a_load_on_a_server_whose_row_has_gone_is_refused_and_no_name_is_sought_for_ever(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint
) -> None:
    replica = make_replica(deployment=deployment)
    services.delete_deployment(actor=alice, deployment=deployment)
    with pytest.raises(IntegrityError):
        begin_load(checkpoint, server="vllm-tiny/a1", replica=replica)


def test_a_proof_that_comes_after_its_server_has_ended_proves_nothing(
    checkpoint: Checkpoint,
) -> None:
    load = begin_load(checkpoint, server="s/1")
    lose_loads(of="s")
    proof = Proof(
        digest=checkpoint.digest,
        transfer_milliseconds=1.0,
        load_milliseconds=1.0,
        probe_milliseconds=1.0,
        server_logprobs=checkpoint.probe["logprobs"],
        tolerance=1e-3,
    )
    assert prove_load(load, proof).status == HotLoad.Status.LOST
    load.refresh_from_db()
    assert (load.status, load.server_logprobs) == (HotLoad.Status.LOST, [])


def test_what_a_server_held_is_lost_also_where_its_row_went_with_its_deployment(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint
) -> None:
    replica = make_replica(deployment=deployment)
    load = make_load(checkpoint, replica=replica)
    HotLoad.objects.filter(pk=load.pk).update(server=f"{replica.name}/{replica.start}")
    services.delete_deployment(actor=alice, deployment=deployment)
    assert not replicas.mark_stopped(replica.name)
    load.refresh_from_db()
    assert load.status == HotLoad.Status.LOST
