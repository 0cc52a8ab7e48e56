"""Whoever works in one project learns no name, prompt or id of another, on any page or path."""

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run, sign_in
from tests.webapp.deployments.conftest import (
    make_call,
    make_checkpoint,
    make_deployment,
    make_load,
    make_replica,
)
from webapp.accounts.models import Actor, User
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.forms import PlaygroundForm
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, EvalSuite, Evaluation
from webapp.fleet.models import Worker
from webapp.openai.listing import list_models
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

SECRET = "okapi"  # in every name and text of Alice's
SIMPLE = r"\^?([\w/.:-]*)\$?"  # a route in which nothing is named


def fill(alice: Actor) -> dict[str, str]:
    """One of everything, with a load on a shared server, and a call. Returns ids by parameter."""
    run = make_run(alice)
    Run.objects.update(name=f"{SECRET} run", status="failed", error=f"{SECRET} broke")
    checkpoint = make_checkpoint(run, name=f"{SECRET}-step")
    deployment = make_deployment(alice, checkpoint, f"{SECRET}-bot")
    shared = make_replica("vllm-shared", base_model=run.base_model)
    make_load(checkpoint, deployment=deployment, replica=shared, error=f"{SECRET} differs")
    make_replica(f"vllm-{deployment.pk}", deployment=deployment, error=f"{SECRET} fell")
    call = make_call(alice, deployment, status="done", finished_at=now(), num_sampled_tokens=50)
    call.payload = {"messages": [{"role": "user", "content": SECRET}], "params": {}}
    call.save()
    held = {"runs": [run.pk], "adapters": [f"{checkpoint.pk}-1"], "restoring": run.pk}
    Worker.objects.create(name="w1", kind="gpu", holds={**held, "server": f"vllm-{deployment.pk}"})
    return {
        **fill_data(alice, checkpoint),
        "run_id": run.pk,
        "checkpoint_id": checkpoint.pk,
        "deployment_id": deployment.pk,
        "call_id": str(call.pk),
        "session_id": run.session_id or "",
        "account": alice.project.pk,
        "project_id": alice.project.pk,
    }


def fill_data(alice: Actor, checkpoint: Checkpoint) -> dict[str, str]:
    project = alice.project
    dataset = Dataset.objects.create(project=project, name=f"{SECRET} rows")
    version = DatasetVersion.objects.create(
        project=project, dataset=dataset, number=1, status=DatasetVersion.Status.READY
    )
    suite = EvalSuite.objects.create(
        project=project,
        name=f"{SECRET} suite",
        dataset_version=version,
        status=EvalSuite.Status.READY,
        graders=[{"name": "contains"}],
    )
    evaluation = Evaluation.objects.create(
        project=project, suite=suite, checkpoint=checkpoint, base_model=checkpoint.base_model
    )
    alias = Alias.objects.create(project=project, name=f"{SECRET}-best", checkpoint=checkpoint)
    return {
        "dataset_id": dataset.pk,
        "version_id": version.pk,
        "suite_id": suite.pk,
        "evaluation_id": evaluation.pk,
        "alias_id": alias.pk,
    }


def list_routes(patterns: list[URLPattern | URLResolver], prefix: str = "") -> Iterator[str]:
    for each in patterns:
        route = prefix + str(each.pattern)
        if isinstance(each, URLResolver):
            yield from list_routes(each.url_patterns, route)
        else:
            yield route


def list_urls(ids: dict[str, str]) -> Iterator[str]:
    """Every path of the product, with ids where it takes them. Those that take others are few."""
    for route in list_routes(get_resolver().url_patterns):
        url = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: ids.get(match[1], match[0]), route)
        if re.fullmatch(SIMPLE, url) and not url.startswith("admin/"):
            yield f"/{url}"


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def bob() -> Client:
    """A browser and a program at once: each path takes what it knows."""
    actor = make_actor("bob")
    _, secret = create_key(actor=actor, name="laptop")
    client = sign_in(actor)
    client.defaults["HTTP_X_API_KEY"] = secret
    return client


def test_no_path_tells_one_project_of_another(alice: Actor, bob: Client) -> None:
    ids = fill(alice)
    hidden = [SECRET, *(each for each in ids.values() if not each.isdecimal())]
    urls = sorted(set(list_urls(ids)))
    told = []
    for url in urls:
        answer = bob.get(url)
        assert answer.status_code < 500, url
        text = answer.getvalue().decode(errors="replace")
        found = [each for each in hidden if each in text and each not in url]
        told += [f"{url} tells {found}"] if found else []
    assert told == []
    assert len(urls) > 150


def test_choosers_and_the_list_of_models_offer_the_projects_own(alice: Actor) -> None:
    fill(alice)
    bob = make_actor("bob")
    offered = str(PlaygroundForm(actor=bob).fields["left"].choices)  # type: ignore[attr-defined]
    listed = str(list_models(bob))
    assert SECRET not in offered + listed
    assert "tiny-chatml-1m" in offered
    assert "tiny-chatml-1m" in listed


@pytest.mark.parametrize("is_operator", [False, True])
def test_traffic_is_that_of_the_own_project_but_for_operators(
    alice: Actor, bob: Client, is_operator: bool
) -> None:
    fill(alice)
    User.objects.filter(username="bob").update(is_staff=is_operator)
    page = bob.get("/settings/serving/")
    table = bob.get("/settings/serving/traffic.csv").content.decode().splitlines()[1:]
    drawn = sum(float(row.split(",")[1]) for row in table)
    assert page.context["traffic"].num_calls == int(is_operator)
    assert (drawn > 0) is is_operator
    assert f"Traffic of this {'installation' if is_operator else 'project'}" in str(page.content)


@pytest.mark.parametrize("is_operator", [False, True])
def test_how_much_a_worker_holds_is_everybodys_and_what_it_is_an_operators(
    alice: Actor, bob: Client, is_operator: bool
) -> None:
    run_id = fill(alice)["run_id"]
    User.objects.filter(username="bob").update(is_staff=is_operator)
    (worker,) = bob.get("/rest/workers").json()
    assert worker["holds"]["runs"] == ([run_id] if is_operator else 1)
    assert worker["holds"]["restoring"] == (run_id if is_operator else True)
    assert (Deployment.objects.get().pk in str(worker)) is is_operator
