"""RLHF as a chain of three runs: launched at once, each waits for the one before it."""

import json
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs import driving, services
from webapp.runs.models import LogLine, Run, RunGroup
from webapp.runs.rlhf import create_rlhf
from webapp.runs.standing import explain_wait
from webapp.runs.steering import request_stop

pytestmark = pytest.mark.django_db

Status = Run.Status
KINDS = {"sft": "conversation", "reward_model": "preference", "rl": "prompt"}


@pytest.fixture
def base_model() -> BaseModel:
    return make_base_model()


@pytest.fixture
def alice(base_model: BaseModel) -> Actor:
    return make_actor()


@pytest.fixture
def versions(alice: Actor) -> dict[str, DatasetVersion]:
    return {recipe: make_version(alice, recipe) for recipe in KINDS}


def make_version(actor: Actor, recipe: str) -> DatasetVersion:
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name=f"for {recipe}"),
        number=1,
        status=DatasetVersion.Status.READY,
        kind=KINDS[recipe],
        filename="rows.jsonl",
        format="jsonl",
        num_rows=40,
        size_bytes=4000,
    )


def make_stages(versions: dict[str, DatasetVersion], **configs: Any) -> dict[str, Any]:
    return {
        recipe: {
            "dataset_version": version,
            "config": {"rank": 4, "steps": 2, **configs.get(recipe, {})},
        }
        for recipe, version in versions.items()
    }


@pytest.fixture
def chain(
    alice: Actor, base_model: BaseModel, versions: dict[str, DatasetVersion]
) -> dict[str, Run]:
    group = create_rlhf(
        actor=alice,
        origin="rest",
        name="helpful",
        base_model=base_model,
        stages=make_stages(versions, sft={"rank": 8, "train_mlp": False}),
    )
    return {run.recipe: run for run in group.runs.all()}


def end(run: Run, status: str = Status.DONE) -> Run:
    """As its driver ends it."""
    assert driving.take_driver(run.pk, driver="d")
    run.refresh_from_db()
    assert driving.finish_run(run, status)
    run.refresh_from_db()
    return run


def save(run: Run, step: int) -> Checkpoint:
    return Checkpoint.objects.create(
        project=run.project,
        run=run,
        base_model=run.base_model,
        name=f"step-{step:06d}",
        kind=Checkpoint.Kind.TRAINING,
        step=step,
        seq=step,
        path=f"checkpoints/{step}",
        digest="ab" * 32,
        size_bytes=1,
        rank=run.rank,
        has_optimizer=True,
    )


def read_lines(run: Run) -> list[str]:
    return list(LogLine.objects.filter(run=run).values_list("text", flat=True))


def test_three_runs_follow_each_other_in_one_group(chain: dict[str, Run]) -> None:
    sft, judge, policy = (chain[recipe] for recipe in KINDS)
    assert (sft.after, judge.after, policy.after) == (None, sft, judge)
    assert {run.group.name for run in chain.values() if run.group} == {"helpful"}
    assert sft.name == "helpful: Supervised fine-tuning"
    assert policy.rank == sft.rank == 8
    assert policy.lora == sft.lora
    (preference,) = policy.config["graders"]
    assert preference["name"] == "preference"


def test_a_run_waits_for_the_one_before_it_and_says_so(chain: dict[str, Run]) -> None:
    judge = chain["reward_model"]
    assert not driving.take_driver(judge.pk, driver="d")
    judge.refresh_from_db()
    assert judge.status == Status.QUEUED
    assert explain_wait(judge) == (
        "it follows helpful: Supervised fine-tuning, which is not done yet"
    )
    # Nobody is sent for it meanwhile, and nobody's place is offered to it.
    assert driving.announce_driverless() == 1


def test_each_stage_goes_on_with_what_the_one_before_it_made(chain: dict[str, Run]) -> None:
    sft, judge, policy = (chain[recipe] for recipe in KINDS)
    save(sft, 1)
    learned = save(sft, 2)
    end(sft)
    decides = save(judge, 2)
    assert end(judge).parent is None
    assert driving.take_driver(policy.pk, driver="d")
    policy.refresh_from_db()
    assert (policy.status, policy.parent, policy.lora) == (Status.RUNNING, learned, sft.lora)
    assert policy.config["graders"][0]["checkpoint"] == decides.pk
    assert read_lines(policy)[-1] == (
        "helpful: Reward model is done: this run goes on with what it made."
    )
    # A second driver, after the first has died, changes nothing any more.
    Run.objects.filter(pk=policy.pk).update(driver="", driver_until=None)
    assert driving.take_driver(policy.pk, driver="d2")
    assert len(read_lines(policy)) == 2


@pytest.mark.parametrize(
    ("status", "said"), [(Status.FAILED, "which failed"), (Status.CANCELLED, "which was stopped")]
)
def test_a_stage_that_ends_badly_ends_those_that_follow(
    chain: dict[str, Run], status: str, said: str
) -> None:
    end(chain["sft"], status)
    for recipe in ("reward_model", "rl"):
        run = chain[recipe]
        assert not driving.take_driver(run.pk, driver="d")
        run.refresh_from_db()
        assert (run.status, run.error_category) == (Status.FAILED, "user")
        assert f"It follows {run.after and run.after.name}" in run.error
    chain["reward_model"].refresh_from_db()
    assert said in chain["reward_model"].error


def test_a_run_that_is_stopped_before_it_began_ends_its_followers(
    alice: Actor, chain: dict[str, Run]
) -> None:
    request_stop(actor=alice, run=chain["sft"])
    assert not driving.take_driver(chain["reward_model"].pk, driver="d")
    chain["reward_model"].refresh_from_db()
    assert chain["reward_model"].status == Status.FAILED


def test_without_a_checkpoint_to_go_on_with_a_run_fails_with_a_sentence(
    chain: dict[str, Run],
) -> None:
    end(chain["sft"])
    save(chain["reward_model"], 2)
    end(chain["reward_model"])
    assert not driving.take_driver(chain["rl"].pk, driver="d")
    chain["rl"].refresh_from_db()
    assert "of which no checkpoint is left" in chain["rl"].error


def test_a_run_may_follow_any_other_and_begins_with_its_weights(
    alice: Actor, base_model: BaseModel, versions: dict[str, DatasetVersion]
) -> None:
    def launch(after: Run | None = None) -> Run:
        return services.create_run(
            actor=alice,
            origin="rest",
            name="",
            base_model=base_model,
            dataset_version=versions["sft"],
            config={"rank": 4},
            after=after,
        )

    first = launch()
    second = launch(after=first)
    learned = save(first, 1)
    end(first)
    assert driving.take_driver(second.pk, driver="d")
    second.refresh_from_db()
    assert second.parent == learned


@pytest.fixture
def program(alice: Actor) -> Client:
    _, secret = create_key(actor=alice, name="test")
    return Client(headers={"X-API-Key": secret})


def make_body(versions: dict[str, DatasetVersion], **changes: Any) -> dict[str, Any]:
    stages = {
        recipe: {"dataset_version": version.pk, "config": {"steps": 2}}
        for recipe, version in versions.items()
    }
    return {"name": "chain", "base_model": "tiny-chatml-1m", **stages, **changes}


def post(program: Client, body: dict[str, Any], key: str = "") -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return program.post("/rest/rlhf", body, content_type="application/json", headers=headers)


def test_rest_launches_the_chain_once_for_one_key(
    program: Client, versions: dict[str, DatasetVersion]
) -> None:
    answers = [post(program, make_body(versions), key="k1") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert RunGroup.objects.count() == 1
    assert sorted(run["recipe"] for run in answers[0].json()["runs"]) == sorted(KINDS)


def test_a_mistake_in_one_stage_launches_none_and_names_the_stage(
    program: Client, versions: dict[str, DatasetVersion]
) -> None:
    wrong = {"dataset_version": versions["sft"].pk, "config": {}}
    answer = post(program, make_body(versions, reward_model=wrong))
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "reward_model.dataset_version"
    assert "Reward model: for sft v1 holds conversations" in answer.json()["error"]["message"]
    bad = {"dataset_version": versions["rl"].pk, "config": {"graders": 3}}
    assert post(program, make_body(versions, rl=bad)).status_code == 400
    steps = {"dataset_version": versions["rl"].pk, "config": {"steps": -1}}
    assert post(program, make_body(versions, rl=steps)).json()["error"]["field"] == "rl.steps"
    assert post(program, {"name": "chain"}).status_code == 400
    assert not Run.objects.exists()
    assert not RunGroup.objects.exists()


def test_another_projects_rows_cannot_be_learned_from(
    program: Client, versions: dict[str, DatasetVersion]
) -> None:
    theirs = make_version(make_actor("carol"), "sft")
    body = make_body(versions, sft={"dataset_version": theirs.pk})
    assert post(program, body).status_code == 400
    assert not Run.objects.exists()


@pytest.mark.usefixtures("versions")
def test_the_form_launches_the_chain_and_shows_the_same_call(alice: Actor) -> None:
    browser = sign_in(alice)
    page = browser.get("/runs/new/rlhf/")
    assert page.context["form"]["sft_learning_rate"].value() == 1e-4
    assert "curl http://testserver/rest/rlhf" in page.context["curl"]
    assert len(page.context["forecasts"]) == 3
    data = fill_stages(page, name="from the form", rl_group_size="6")
    answer = browser.post("/runs/new/rlhf/", data)
    group = RunGroup.objects.get()
    assert answer.headers["Location"] == f"/runs/groups/{group.pk}/"
    policy = group.runs.get(recipe="rl")
    assert (policy.config["group_size"], policy.config["kl_coefficient"]) == (6, 0.05)
    assert (policy.origin, policy.config["learning_rate"]) == ("browser", 4e-5)
    wrong = browser.post("/runs/new/rlhf/", data | {"rl_group_size": "1"})
    assert wrong.status_code == 400
    assert "1 is too small" in wrong.content.decode()
    later = browser.post("/runs/new/rlhf/forecast/", data | {"sft_steps": "7"})
    assert later.context["forecasts"][0][1].num_steps == 7


@pytest.mark.usefixtures("versions")
def test_the_call_that_the_form_shows_is_taken_with_the_name_left_empty(
    alice: Actor, program: Client
) -> None:
    shown = sign_in(alice).get("/runs/new/rlhf/").context["curl"]
    assert post(program, json.loads(shown.partition("-d '")[2][:-1])).status_code == 201
    assert RunGroup.objects.get().name.startswith("RLHF on ")


def fill_stages(page: Any, **changes: str) -> dict[str, Any]:
    """The form as the page offers it, with some fields changed."""
    form = page.context["form"]
    values = {bound.html_name: bound.value() for bound in form}
    for name in form.fields:
        if name.endswith("dataset_version") or name == "base_model":
            values[name] = form.fields[name].queryset.first().pk
    return {name: value for name, value in (values | changes).items() if value is not None}


def test_without_all_three_datasets_the_page_says_which_are_missing(
    alice: Actor, base_model: BaseModel
) -> None:
    browser = sign_in(alice)
    page = browser.get("/runs/new/rlhf/").content.decode()
    assert "or plain text; preference pairs; prompts with a reference answer" in page
    make_version(alice, "sft")
    page = browser.get("/runs/new/rlhf/").content.decode()
    assert "Not ready yet: preference pairs" in page
