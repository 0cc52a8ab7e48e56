"""Runs of all weights as people and programs launch them: the form, REST, branches, the words."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_run, sign_in
from tests.webapp.runs.test_pages_launch import fill, make_version
from training.recipes.sft import SftConfig
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.evals.changes import list_changes
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.estimates import estimate_seconds
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

OF_ADAPTERS = {"alpha", "train_mlp", "train_attn", "train_unembed", "train_embed"}


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def program(alice: Actor) -> Client:
    _, secret = create_key(actor=alice, name="test")
    return Client(headers={"X-API-Key": secret})


@pytest.fixture
def base_model() -> BaseModel:
    return make_base_model()


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    return make_version(alice)


def make_parent(actor: Actor, base_model: BaseModel, *, rank: int = 0) -> Checkpoint:
    run = make_run(actor, base_model)
    Run.objects.filter(pk=run.pk).update(rank=rank, config={"learning_rate": 1e-5})
    run.refresh_from_db()
    return Checkpoint.objects.create(
        project=actor.project,
        run=run,
        base_model=base_model,
        name="step-20",
        kind=Checkpoint.Kind.TRAINING,
        step=20,
        seq=40,
        path="checkpoints/x",
        digest="ab" * 32,
        size_bytes=1,
        rank=rank,
        has_optimizer=True,
    )


def launch(
    program: Client, version: DatasetVersion, config: dict[str, Any], **columns: str
) -> dict[str, Any]:
    body = {"base_model": "tiny-chatml-1m", "dataset_version": version.pk, "config": config}
    answer = program.post("/rest/runs", body | columns, content_type="application/json")
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.usefixtures("base_model", "version")
def test_the_form_launches_a_run_of_all_weights(browser: Client) -> None:
    page = browser.get("/runs/new/")
    browser.post("/runs/new/", fill(page, weights="full", learning_rate="1e-5"))
    run = Run.objects.get()
    assert (run.rank, run.lora, run.config["rank"]) == (0, {}, 0)
    assert not OF_ADAPTERS & run.config.keys()
    assert SftConfig.from_dict(run.config).learning_rate == 1e-5


@pytest.mark.usefixtures("base_model", "version")
def test_a_mistake_in_a_field_that_all_weights_hide_stops_nobody(browser: Client) -> None:
    data = fill(browser.get("/runs/new/"), weights="full", rank="0", alpha="-1")
    for part in ("train_attn", "train_mlp"):
        data.pop(part)
    assert browser.post("/runs/new/", data).status_code == 302
    assert Run.objects.get().rank == 0


@pytest.mark.usefixtures("version")
def test_all_weights_are_offered_a_tenth_of_an_adapters_learning_rate(
    browser: Client, base_model: BaseModel
) -> None:
    page = browser.get("/runs/new/").content.decode()
    assert 'data-rate-lora="0.0001"' in page
    assert 'data-rate-full="1e-05"' in page
    BaseModel.objects.filter(pk=base_model.pk).update(num_parameters=135_000_000)
    page = browser.get("/runs/new/").content.decode()
    assert 'data-rate-lora="0.001"' in page
    assert 'data-rate-full="0.0001"' in page


@pytest.mark.usefixtures("base_model", "version")
def test_the_page_says_that_no_program_on_the_sdk_does_the_same(browser: Client) -> None:
    data = fill(browser.get("/runs/new/"), weights="full")
    page = browser.post("/runs/new/forecast/", data)
    assert page.context["export"].script == ""
    assert '"rank": 0' in page.context["export"].curl
    assert "The tinker SDK begins runs of adapters only" in page.content.decode()
    assert "create_lora_training_client" not in page.content.decode()


@pytest.mark.usefixtures("version")
def test_a_branch_from_all_weights_trains_all_weights(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    parent = make_parent(alice, base_model)
    page = browser.get(f"/runs/new/?parent={parent.pk}")
    assert page.context["form"]["weights"].value() == "full"
    assert page.context["form"]["learning_rate"].value() == 1e-5
    assert "all weights go on learning" in page.content.decode()
    browser.post(f"/runs/new/?parent={parent.pk}", fill(page, weights="lora", rank="8"))
    run = Run.objects.get(recipe="sft")
    assert (run.parent, run.rank, run.lora, run.with_optimizer) == (parent, 0, {}, True)


@pytest.mark.usefixtures("version")
def test_a_branch_from_an_adapter_does_not_become_all_weights(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    parent = make_parent(alice, base_model, rank=4)
    page = browser.get(f"/runs/new/?parent={parent.pk}")
    browser.post(f"/runs/new/?parent={parent.pk}", fill(page, weights="full"))
    assert Run.objects.get(recipe="sft").rank == 4


@pytest.mark.usefixtures("base_model")
def test_rest_launches_all_weights_by_rank_0(program: Client, version: DatasetVersion) -> None:
    told = launch(program, version, {"rank": 0, "steps": 2})
    assert (told["rank"], told["lora"], told["config"]["learning_rate"]) == (0, {}, 1e-5)
    again = launch(program, version, told["config"])
    assert again["config"] == told["config"]


def test_over_rest_a_branch_has_its_parents_shape(
    alice: Actor, program: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    parent = make_parent(alice, base_model)
    told = launch(program, version, {"steps": 2}, parent=parent.pk)
    assert (told["rank"], told["lora"]) == (0, {})
    told = launch(program, version, {"rank": 8, "steps": 2}, parent=parent.pk)
    said = "The checkpoint step-20 holds all weights: leave the rank out."
    assert told["error"]["message"] == said


def test_the_forecast_of_a_branch_is_of_what_its_parent_trains(
    alice: Actor, program: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    BaseModel.objects.update(num_parameters=1_000_000_000)
    Worker.objects.create(name="w", kind=Worker.Kind.GPU, flops=1e12)
    body = {"base_model": "tiny-chatml-1m", "dataset_version": version.pk, "config": {"steps": 9}}
    times = [
        program.post("/rest/runs/forecast", body | columns, content_type="application/json").json()[
            "seconds"
        ]
        for columns in ({}, {"parent": make_parent(alice, base_model).pk})
    ]
    assert times[1] == pytest.approx(1.5 * times[0], rel=0.01)


def test_a_step_of_all_weights_costs_half_as_much_again(base_model: BaseModel) -> None:
    BaseModel.objects.update(num_parameters=1_000_000)
    base_model.refresh_from_db()
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=8e9)
    estimate = estimate_seconds(
        base_model=base_model, num_tokens_per_step=100, steps=10, is_full=True
    )
    assert estimate is not None
    # 6e6 operations a token and 8e9 a second: 0.075 s a step, 0.15 s at half of the speed
    assert estimate.seconds == pytest.approx(10 * (0.15 + 0.05))


def test_earlier_runs_of_adapters_say_nothing_of_the_speed_of_all_weights(
    alice: Actor, base_model: BaseModel
) -> None:
    speeds = {8: 900.0, 0: 300.0}
    for number, (rank, speed) in enumerate(speeds.items()):
        run = make_run(alice, base_model, model_seq_id=number)
        Run.objects.filter(pk=run.pk).update(rank=rank, tokens_per_second=speed)
    for is_full in (True, False):
        estimate = estimate_seconds(
            base_model=base_model, num_tokens_per_step=60, steps=10, is_full=is_full
        )
        assert estimate is not None
        assert estimate.tokens_per_second == speeds[0 if is_full else 8]


def test_a_runs_page_says_all_weights_and_offers_no_script(
    browser: Client, program: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    run_id = launch(program, version, {"rank": 0, "steps": 2})["id"]
    assert "<span>all weights</span>" in browser.get(f"/runs/{run_id}/").content.decode()
    config = browser.get(f"/runs/{run_id}/?tab=config").content.decode()
    assert "The tinker SDK begins runs of adapters only" in config
    assert "alpha" not in config


def test_a_comparison_of_evaluations_says_all_weights(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    suite = EvalSuite.objects.create(project=alice.project, name="s", dataset_version=version)
    full = make_parent(alice, base_model)
    small = make_parent(alice, base_model, rank=4)
    evaluations = [
        Evaluation.objects.create(
            project=alice.project, suite=suite, base_model=base_model, checkpoint=checkpoint
        )
        for checkpoint in (None, full, small)
    ]
    by_name = {each.name: each.values for each in list_changes(*evaluations[1:])}
    assert by_name["rank"] == ("all weights", "4")
    by_name = {each.name: each.values for each in list_changes(*evaluations[:2])}
    assert by_name["trained"][1] == "20 steps, all weights, learning rate 1e-5"
