"""Weights by all their names, and none that the key's project may not see."""

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from tests.webapp.cast import make_actor
from tests.webapp.openai.conftest import MODEL, Client
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, SamplingCall
from webapp.openai.targets import find_target
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/v1/completions"


@pytest.fixture
def deployment(alice: Actor, checkpoint: Checkpoint) -> Deployment:
    return services.create_deployment(actor=alice, name="pirate", checkpoint=checkpoint)


def test_a_model_goes_by_all_its_names(
    alice: Actor, checkpoint: Checkpoint, run: Run, deployment: Deployment
) -> None:
    account = alice.project.pk
    for name in ("pirate", deployment.pk, f"accounts/{account}/deployments/pirate"):
        target = find_target(alice, name)
        assert (target.deployment, target.checkpoint) == (deployment, checkpoint)
    for name in (checkpoint.pk, f"{run.pk}/first", f"{run.name}/first", checkpoint.tinker_path):
        target = find_target(alice, name)
        assert (target.checkpoint, target.deployment) == (checkpoint, None)
    assert find_target(alice, MODEL).checkpoint is None


async def test_a_checkpoint_answers_otherwise_than_its_base(
    client: Client, checkpoint: Checkpoint, deployment: Deployment
) -> None:
    asked = {"prompt": "Hello you", "max_tokens": 12, "temperature": 0}
    base = await client.post(PATH, **asked)
    tuned = await client.post(PATH, **asked, model=checkpoint.pk)
    served = await client.post(PATH, **asked, model="pirate")
    texts = [each.json["choices"][0]["text"] for each in (base, tuned, served)]
    assert texts[0] != texts[1] == texts[2]
    call = await SamplingCall.objects.alatest("pk")
    assert (call.deployment_id, call.checkpoint_id) == (deployment.pk, checkpoint.pk)


async def test_a_deployment_that_still_loads_makes_its_first_caller_wait(
    client: Client, save: Callable[..., Checkpoint]
) -> None:
    checkpoint = await sync_to_async(save)("second")
    await sync_to_async(services.create_deployment)(
        actor=client.actor, name="new", checkpoint=checkpoint
    )
    told = await client.post(PATH, prompt="Hello", max_tokens=2, model="new")
    assert told.status == 200


async def test_a_deployment_that_does_not_serve_is_not_there(
    client: Client, deployment: Deployment
) -> None:
    for status, words in (("stopped", "is stopped"), ("failed", "does not serve: It broke.")):
        rows = Deployment.objects.filter(pk=deployment.pk)
        await rows.aupdate(status=status, error="It broke.")
        told = await client.post(PATH, prompt="Hello", model="pirate")
        assert (told.status, told.error["code"]) == (404, "model_not_found")
        assert words in told.error["message"]


async def test_another_projects_weights_do_not_exist(
    client: Client, checkpoint: Checkpoint, run: Run, deployment: Deployment
) -> None:
    def move() -> None:
        other = make_actor("carol").project
        for rows in (Checkpoint.objects, Run.objects, Deployment.objects):
            rows.update(project=other)

    account = client.actor.project.pk
    await sync_to_async(move)()
    names = [checkpoint.pk, f"{run.pk}/first", f"tinker://{run.pk}/sampler_weights/first"]
    for name in (*names, "pirate", f"accounts/{account}/deployments/pirate", "accounts/x/y/z"):
        told = await client.post(PATH, prompt="Hello", model=name)
        assert told.status in (400, 404), name
        assert (await client.read(f"/v1/models/{name}")).status == told.status
    listed = (await client.read("/v1/models")).json["data"]
    assert [each["id"] for each in listed] == [MODEL]


async def test_the_list_names_what_answers(
    client: Client, checkpoint: Checkpoint, run: Run, deployment: Deployment
) -> None:
    listed: list[dict[str, Any]] = (await client.read("/v1/models")).json["data"]
    assert {(each["id"], each["kind"], each["parent"]) for each in listed} == {
        (MODEL, "base_model", None),
        ("pirate", "deployment", MODEL),
        (f"{run.pk}/first", "checkpoint", MODEL),
    }
    for each in listed:
        assert (await client.read(f"/v1/models/{each['id']}")).json == each
