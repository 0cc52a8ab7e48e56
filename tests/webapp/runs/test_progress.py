"""What stands at the head of a run's page: the numbers that its method is judged by."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_run, sign_in
from tests.webapp.runs.test_pages import make_recipe_run
from webapp.accounts.models import Actor
from webapp.runs.history import record_metrics
from webapp.runs.lists import RunQuery, list_runs
from webapp.runs.models import Run
from webapp.runs.progress import read_stats

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


def test_a_policy_is_headed_by_its_reward_and_not_by_its_loss(
    alice: Actor, browser: Client
) -> None:
    run = make_recipe_run(alice, recipe="rl", last_loss=-3.6e-7)
    record_metrics(run, 4, {"loss": -3.6e-7, "reward/mean": 0.75, "held_out/reward": 0.5})
    record_metrics(run, 5, {"loss": -3.6e-7, "reward/mean": 0.8125})
    shown = [(each.label, each.value, each.step) for each in read_stats(run).headlines]
    assert shown == [("Reward", 0.8125, None), ("Held-out reward", 0.5, 4)]
    page = browser.get(f"/runs/{run.pk}/parts/stats/").content.decode()
    assert "0.8125" in page
    assert "at step 4" in page
    assert "Loss" not in page


def test_fine_tuning_is_headed_by_its_losses_and_a_program_by_what_it_tells(alice: Actor) -> None:
    base_model = make_base_model()
    tuned, own = make_recipe_run(alice, base_model, last_loss=2.5), make_run(alice, base_model)
    assert [(each.label, each.value) for each in read_stats(tuned).headlines] == [
        ("Loss", 2.5),
        ("Held-out loss", None),
    ]
    assert [each.label for each in read_stats(own).headlines] == ["Loss"]
    record_metrics(own, 1, {"held_out_loss": 2.25})
    assert [each.label for each in read_stats(own).headlines] == ["Loss", "Held-out loss"]


def test_the_list_names_methods_as_the_launch_form_does_and_finds_them_by_it(
    alice: Actor, browser: Client
) -> None:
    base_model = make_base_model()
    learned = make_recipe_run(alice, base_model, recipe="rl")
    tuned = make_recipe_run(alice, base_model)
    page = browser.get("/runs/").content.decode()
    assert "Reinforcement learning" in page
    assert "Supervised fine-tuning" in page

    def find(text: str) -> list[Run]:
        query = RunQuery(text=text, status="", sort="-created", cursor="")
        return list(list_runs(alice, query).rows)

    assert (find("reinf"), find("sft")) == ([learned], [tuned])
