"""Methods as people choose them: what each learns from, and what the form keeps of the last one."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_run, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.runs.test_pages_launch import fill, make_version
from training.recipes.rl_config import RlConfig
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.methods import METHODS
from webapp.runs.models import Run
from webapp.runs.rl_scripts import DRAWN, READ_AGAIN, write_rl
from webapp.runs.scripts import Program
from workers.methods import DRIVES

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    make_base_model()
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def program(alice: Actor) -> Client:
    _, secret = create_key(actor=alice, name="test")
    return Client(headers={"X-API-Key": secret})


def test_every_method_has_somebody_who_drives_it() -> None:
    assert METHODS.keys() == DRIVES.keys()
    assert all(recipe == method.recipe for recipe, method in METHODS.items())


@pytest.mark.parametrize("path", ["/rest/runs", "/rest/runs/forecast"])
def test_a_dataset_of_another_kind_is_refused_with_what_the_method_reads(
    alice: Actor, program: Client, path: str
) -> None:
    pairs = make_version(alice, kind="preference")
    body = {"base_model": "tiny-chatml-1m", "dataset_version": pairs.pk, "recipe": "sft"}
    answer = program.post(path, body, content_type="application/json")
    assert answer.status_code == 400
    assert "calls v1 holds preference pairs: Supervised fine-tuning learns from" in str(
        answer.json()
    )
    assert not Run.objects.exists()


def test_a_method_that_learns_from_rows_asks_for_a_dataset(program: Client) -> None:
    body = {"base_model": "tiny-chatml-1m"}
    answer = program.post("/rest/runs", body, content_type="application/json")
    assert answer.status_code == 400
    assert "name a dataset version" in str(answer.json())


def test_a_method_nobody_knows_is_refused_with_those_there_are(
    browser: Client, program: Client
) -> None:
    assert browser.get("/runs/new/?method=magic").status_code == 400
    body = {"base_model": "tiny-chatml-1m", "recipe": "magic"}
    answer = program.post("/rest/runs", body, content_type="application/json")
    assert answer.status_code == 400
    assert "magic" in str(answer.json())


@pytest.mark.parametrize("recipe", list(METHODS))
def test_the_form_of_another_method_keeps_what_was_filled_in(
    alice: Actor, browser: Client, recipe: str
) -> None:
    page = browser.get("/runs/new/?method=sft")
    make_version(alice)
    kinds = METHODS[recipe].kinds
    if kinds and "conversation" not in kinds:
        DatasetVersion.objects.create(
            project=alice.project,
            dataset=Dataset.objects.create(project=alice.project, name="other"),
            number=1,
            status=DatasetVersion.Status.READY,
            filename="rows.jsonl",
            format="jsonl",
            kind=kinds[0],
            num_rows=10,
            size_bytes=1000,
        )
    filled = fill(page, name="kept", batch_size="3", rank="5")
    filled.pop("train_mlp")
    posted = {**filled, "switched_from": "sft"}
    other = browser.post(f"/runs/new/?method={recipe}", posted)
    assert other.status_code == 200
    assert not Run.objects.exists()
    form = other.context["form"]
    kept = {name: form[name].value() for name in ("name", "batch_size", "rank", "train_mlp")}
    assert kept == {"name": "kept", "batch_size": "3", "rank": "5", "train_mlp": False}
    assert form["learning_rate"].value() == other.context["launch"].rates["lora"]
    mine = browser.post(
        f"/runs/new/?method={recipe}", posted | {"learning_rate": "0.0123"}
    ).context["form"]
    assert mine["learning_rate"].value() == "0.0123"


@pytest.mark.parametrize("recipe", list(METHODS))
def test_the_page_of_a_method_without_a_dataset_says_what_it_wants(
    browser: Client, recipe: str
) -> None:
    page = browser.get(f"/runs/new/?method={recipe}")
    assert page.status_code == 200
    if METHODS[recipe].kinds:
        assert METHODS[recipe].wanted in page.content.decode()


@pytest.mark.parametrize(
    ("kind", "recipe"), [("preference", "dpo"), ("prompt", "rl"), ("conversation", "sft")]
)
def test_a_link_from_a_dataset_opens_a_method_that_learns_from_it(
    alice: Actor, browser: Client, kind: str, recipe: str
) -> None:
    version = make_version(alice, kind=kind)
    page = browser.get(f"/runs/new/?version={version.pk}")
    assert page.context["launch"].method.recipe == recipe
    assert page.context["form"]["dataset_version"].value() == version.pk
    named = browser.get(f"/runs/new/?version={version.pk}&method=reward_model")
    assert named.context["launch"].method.recipe == "reward_model"


def test_a_runs_page_calls_its_method_by_name(alice: Actor, browser: Client) -> None:
    version = make_version(alice, kind="preference")
    browser.post(
        "/runs/new/?method=reward_model", fill(browser.get("/runs/new/?method=reward_model"))
    )
    run = Run.objects.get()
    assert (run.recipe, run.dataset_version) == ("reward_model", version)
    page = browser.get(f"/runs/{run.pk}/").content.decode()
    assert "Reward model" in page


@pytest.mark.parametrize("recipe", list(METHODS))
def test_every_method_is_forecast_and_written_as_a_call_and_as_a_program(
    alice: Actor, browser: Client, recipe: str
) -> None:
    kinds = METHODS[recipe].kinds
    make_version(alice, kind=kinds[0] if kinds else "conversation")
    page = browser.get(f"/runs/new/?method={recipe}")
    forecast, export = page.context["forecast"], page.context["export"]
    assert forecast.num_steps > 0
    assert forecast.num_tokens > 0
    assert f'"recipe": "{recipe}"' in export.curl
    compile(export.script, "script", "exec")
    assert "tinker.ServiceClient()" in export.script


def test_a_pattern_stands_in_the_program_as_it_was_written() -> None:
    pattern = "(SCALE|MASK|REWARD)"
    graders = [{"name": "regex", "pattern": pattern, "weight": 1.0}]
    config = RlConfig.from_dict({"graders": graders, "steps": 1})
    made = write_rl(
        Program(url="http://x", base_model="m", context_tokens=0, version_id="v", config=config)
    )
    assert f"re.search({pattern!r}, text)" in made


@pytest.mark.parametrize(("temperature", "own"), [(1.0, DRAWN), (0.7, READ_AGAIN)])
def test_a_program_learns_and_penalises_at_the_temperature_that_it_samples_at(
    temperature: float, own: str
) -> None:
    settings = {"temperature": temperature, "kl_coefficient": 0.1, "steps": 1}
    made = write_rl(
        Program(
            url="http://x",
            base_model="m",
            context_tokens=0,
            version_id="v",
            config=RlConfig.from_dict(settings),
        )
    )
    compile(made, "script", "exec")
    expected = None if temperature == 1.0 else {"temperature": temperature}
    assert f"LOSS_CONFIG = {expected!r}\n" in made
    assert f"zip({own}, read_logprobs(reference, learned))" in made


def test_a_program_says_that_it_does_not_stop_early(alice: Actor, browser: Client) -> None:
    make_version(alice)
    page = browser.get("/runs/new/")
    said = "may stop early; this program makes all of its steps"
    assert said not in page.context["export"].script
    later = browser.post("/runs/new/forecast/", fill(page, early_stop="held_out_loss"))
    assert said in later.context["export"].script
    compile(later.context["export"].script, "script", "exec")


def test_a_reward_model_of_another_project_is_refused_at_once(
    alice: Actor, program: Client
) -> None:
    version = make_version(alice, kind="prompt")
    base_model = BaseModel.objects.get()
    for owner, status in ((make_actor("carol"), 400), (alice, 201)):
        judge = make_checkpoint(make_run(owner, base_model))
        body = {
            "base_model": base_model.name,
            "dataset_version": version.pk,
            "recipe": "rl",
            "config": {"graders": [{"name": "preference", "checkpoint": judge.pk}], "steps": 1},
        }
        answer = program.post("/rest/runs", body, content_type="application/json")
        assert (answer.status_code, "reward model" in answer.content.decode()) == (
            status,
            status == 400,
        )
