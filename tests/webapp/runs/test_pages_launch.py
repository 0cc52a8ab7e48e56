"""Launching a run from the form: defaults, every refusal, the forecast, branches."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_run, make_viewer, sign_in
from training.recipes.sft import SftConfig
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.export import export_run
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model() -> BaseModel:
    return make_base_model()


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    return make_version(alice)


def make_version(actor: Actor, **columns: object) -> DatasetVersion:
    dataset = Dataset.objects.create(project=actor.project, name="calls")
    return DatasetVersion.objects.create(
        **{
            "project": actor.project,
            "dataset": dataset,
            "number": 1,
            "status": DatasetVersion.Status.READY,
            "filename": "calls.jsonl",
            "format": "jsonl",
            "num_rows": 400,
            "size_bytes": 400_000,
            **columns,
        }
    )


def fill(page: Any, **changes: object) -> dict[str, Any]:
    """The form as the page offers it, with some fields changed."""
    form = page.context["form"]
    values = {bound.html_name: bound.value() for bound in form}
    for name in ("dataset_version", "base_model"):
        values[name] = values[name] or form.fields[name].queryset.first().pk
    values |= changes
    return {
        name: value
        for name, value in values.items()
        if value not in (None, "") and value is not False
    }


@pytest.mark.usefixtures("base_model", "version")
def test_the_defaults_launch_a_run_that_the_recipe_accepts(browser: Client) -> None:
    answer = browser.post("/runs/new/", fill(browser.get("/runs/new/")))
    run = Run.objects.get()
    assert answer.headers["Location"] == f"/runs/{run.pk}/"
    assert (run.origin, run.recipe, run.status, run.rank) == ("browser", "sft", "queued", 32)
    assert run.name == "calls on tiny-chatml-1m"
    config = SftConfig.from_dict(run.config)
    assert (config.epochs, config.steps, config.batch_size) == (1.0, None, 8)
    assert (config.held_out_share, config.schedule, config.overlong) == (0.1, "linear", "truncate")


@pytest.mark.usefixtures("base_model", "version")
def test_every_setting_of_the_form_reaches_the_recipe(browser: Client) -> None:
    changes = {
        "name": "all set",
        "length": "40",
        "length_unit": "steps",
        "batch_size": "4",
        "learning_rate": "1e-3",
        "rank": "16",
        "alpha": "64",
        "train_unembed": "on",
        "train_embed": "on",
        "schedule": "cosine",
        "warmup_steps": "2",
        "weight_decay": "0.01",
        "grad_clip_norm": "0",
        "max_length": "128",
        "overlong": "drop",
        "held_out_share": "0.2",
        "seed": "7",
        "evaluate_every": "5",
        "checkpoint_every": "20",
        "sample_every": "8",
        "sample_tokens": "32",
        "temperature": "0.7",
        "prompts": 'Hello?\n\n[{"role": "user", "content": "Two\\nlines"}]',
    }
    browser.post("/runs/new/", fill(browser.get("/runs/new/"), **changes))
    config = SftConfig.from_dict(Run.objects.get(name="all set").config)
    assert (config.rank, config.alpha) == (16, 64.0)
    assert (config.train_unembed, config.train_embed) == (True, True)
    assert (config.steps, config.epochs, config.batch_size) == (40, None, 4)
    assert (config.learning_rate, config.schedule, config.warmup_steps) == (1e-3, "cosine", 2)
    assert (config.weight_decay, config.grad_clip_norm) == (0.01, 0.0)
    assert (config.max_length, config.overlong, config.held_out_share) == (128, "drop", 0.2)
    assert (config.seed, config.evaluate_every, config.checkpoint_every) == (7, 5, 20)
    assert (config.sampling.every, config.sampling.max_tokens) == (8, 32)
    assert config.sampling.temperature == 0.7
    assert config.sampling.prompts == ("Hello?", ({"role": "user", "content": "Two\nlines"},))


@pytest.mark.usefixtures("base_model", "version")
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank", "0", "0 is too small: give a whole number from 1 to 512."),
        ("rank", "10000", "10000 is too large: give a whole number from 1 to 512."),
        ("rank", "", "Left empty: the usual is 32."),
        ("learning_rate", "0", "0.0 is too small: give a number from 1e-9 to 1."),
        ("learning_rate", "nan", "This is no number: give a number from 1e-9"),
        ("learning_rate", "2", "2.0 is too large: give a number from 1e-9 to 1."),
        ("batch_size", "0", "0 is too small: give a whole number from 1 to 4,096."),
        ("length", "0", "0.0 is too small: give a number from 0.01 to 1,000,000."),
        ("held_out_share", "1", "1.0 is too large: give a number from 0 to 0.9."),
        ("seed", "-1", "-1 is too small: give a whole number from 0 to 2,147,483,647."),
        ("max_length", "3", "3 is too small: give a whole number from 8 to 1,000,000."),
        ("schedule", "zigzag", "Select a valid choice"),
        ("overlong", "explode", "Select a valid choice"),
        ("temperature", "-1", "-1.0 is too small: give a number from 0 to 10."),
        ("sample_tokens", "0", "0 is too small: give a whole number from 1 to 32,768."),
        ("dataset_version", "dsv-none", "Choose a version that is ready"),
        ("base_model", "base-none", "Select a valid choice"),
        ("prompts", "[not json", "Line 1 begins like a JSON list, and is none."),
        ("prompts", '[{"role": "user"}]', "Line 1: every message needs a role and a content"),
        ("prompts", "x\n" * 51, "There are 51 prompts: give at most 50."),
    ],
)
def test_a_wrong_value_is_said_beside_its_field(
    browser: Client, field: str, value: str, said: str
) -> None:
    data = fill(browser.get("/runs/new/")) | {field: value}
    answer = browser.post("/runs/new/", data)
    assert answer.status_code == 400
    assert said in answer.context["form"].errors[field][0]
    assert f'id="id_{field}-error"' in answer.content.decode()
    assert not Run.objects.exists()


@pytest.mark.usefixtures("base_model", "version")
def test_half_a_step_and_an_adapter_of_nothing_are_refused(browser: Client) -> None:
    data = fill(browser.get("/runs/new/"), length="1.5", length_unit="steps")
    data.pop("train_attn")
    data.pop("train_mlp")
    errors = browser.post("/runs/new/", data).context["form"].errors
    assert errors["length"] == ["Steps are whole: give a whole number, or count in epochs."]
    assert errors["train_attn"] == ["Nothing would learn: choose at least one part."]


@pytest.mark.usefixtures("base_model")
def test_another_projects_dataset_cannot_be_learned_from(
    browser: Client, version: DatasetVersion
) -> None:
    theirs = make_version(make_actor("carol"))
    page = browser.get("/runs/new/")
    answer = browser.post("/runs/new/", fill(page, dataset_version=theirs.pk))
    assert "dataset_version" in answer.context["form"].errors


@pytest.mark.usefixtures("base_model")
def test_a_version_that_is_not_ready_is_not_offered(alice: Actor, browser: Client) -> None:
    make_version(alice, status=DatasetVersion.Status.VALIDATING)
    assert b"No dataset is ready" in browser.get("/runs/new/").content


@pytest.mark.usefixtures("version")
def test_without_a_base_model_the_page_says_how_to_add_one(browser: Client) -> None:
    assert b"manage.py model add PATH" in browser.get("/runs/new/").content


@pytest.mark.usefixtures("version")
def test_a_small_model_is_offered_a_higher_learning_rate(
    browser: Client, base_model: BaseModel
) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(num_parameters=135_000_000)
    assert browser.get("/runs/new/").context["form"]["learning_rate"].value() == 1e-3
    BaseModel.objects.filter(pk=base_model.pk).update(num_parameters=8_000_000_000)
    assert browser.get("/runs/new/").context["form"]["learning_rate"].value() == 1e-4


@pytest.mark.usefixtures("version")
def test_the_forecast_counts_steps_and_time(browser: Client, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(num_parameters=1_000_000)
    Worker.objects.create(name="w", kind=Worker.Kind.GPU, flops=8e9)
    page = browser.get("/runs/new/")
    forecast = page.context["forecast"]
    assert (forecast.num_rows, forecast.num_steps) == (360, 45)
    assert forecast.estimate.tokens_per_second == pytest.approx(974.6, rel=1e-3)
    assert "1 m 8 s to 2 m 57 s" in page.content.decode()
    later = browser.post("/runs/new/forecast/", fill(page, length="10", length_unit="steps"))
    assert later.context["forecast"].num_steps == 10
    assert "seconds" not in later.content.decode()
    wrong = browser.post("/runs/new/forecast/", fill(page, rank="0"))
    assert "Some settings cannot be used" in wrong.content.decode()


@pytest.mark.usefixtures("base_model")
def test_the_form_shows_the_same_run_as_curl_and_as_a_program(
    browser: Client, version: DatasetVersion
) -> None:
    export = browser.get("/runs/new/").context["export"]
    assert "curl http://testserver/rest/runs" in export.curl
    assert f'"dataset_version": "{version.pk}"' in export.curl
    assert "create_lora_training_client" in export.script
    assert "train_mlp=True, train_attn=True, train_unembed=False,\n)" in export.script
    compile(export.script, "script", "exec")


def test_a_program_says_that_it_cannot_train_the_embedding(base_model: BaseModel) -> None:
    config = {"train_embed": True, "train_unembed": True, "steps": 3}
    export = export_run(
        url="u",
        name="n",
        base_model=base_model,
        version=DatasetVersion(pk="dsv-1"),
        config=config,
    )
    assert "train_unembed=True,  # no flag means the input embedding" in export.script
    compile(export.script, "script", "exec")


@pytest.mark.usefixtures("base_model", "version")
def test_a_viewer_cannot_launch(alice: Actor) -> None:
    browser = Client()
    browser.force_login(make_viewer(alice).user)
    assert browser.get("/runs/new/").status_code == 400
    assert browser.post("/runs/new/", {}).status_code == 400


def make_parent(actor: Actor, base_model: BaseModel, *, has_optimizer: bool) -> Checkpoint:
    run = make_run(actor, base_model)
    Run.objects.filter(pk=run.pk).update(lora={"alpha": 16, "train_attn": True, "train_mlp": False})
    return Checkpoint.objects.create(
        project=actor.project,
        run=run,
        base_model=base_model,
        name="step-20",
        kind=Checkpoint.Kind.TRAINING if has_optimizer else Checkpoint.Kind.SAMPLER,
        step=20,
        seq=40,
        path="checkpoints/x",
        digest="ab" * 32,
        size_bytes=1,
        rank=4,
        has_optimizer=has_optimizer,
    )


@pytest.mark.usefixtures("version")
def test_a_branch_keeps_its_parents_shape_and_may_take_the_optimizer(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    parent = make_parent(alice, base_model, has_optimizer=True)
    page = browser.get(f"/runs/new/?parent={parent.pk}")
    browser.post(f"/runs/new/?parent={parent.pk}", fill(page, rank="99"))
    run = Run.objects.get(recipe="sft")
    assert (run.parent, run.with_optimizer, run.rank) == (parent, True, 4)
    assert run.lora == {"alpha": 16, "train_attn": True, "train_mlp": False}
    assert run.name == "a run from step 20"


@pytest.mark.usefixtures("version")
def test_a_sampler_checkpoint_branches_without_optimizer(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    parent = make_parent(alice, base_model, has_optimizer=False)
    page = browser.get(f"/runs/new/?parent={parent.pk}")
    browser.post(f"/runs/new/?parent={parent.pk}", fill(page, with_optimizer="on"))
    assert Run.objects.get(recipe="sft").with_optimizer is False


def test_another_projects_checkpoint_is_no_parent(browser: Client, base_model: BaseModel) -> None:
    parent = make_parent(make_actor("carol"), base_model, has_optimizer=True)
    assert browser.get(f"/runs/new/?parent={parent.pk}").status_code == 400
