"""What a person does to a run while it learns, from the page."""

import pytest

from tests.webapp.cast import make_actor, make_base_model, sign_in
from tests.webapp.runs.test_pages import make_recipe_run
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.runs import driving, steering
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def actor() -> Actor:
    return make_actor()


@pytest.fixture
def run(actor: Actor) -> Run:
    config = {"learning_rate": 1e-3, "kl_coefficient": 0.05}
    return make_recipe_run(actor, config=config, step=7, recipe="rl")


def list_said(run: Run) -> list[tuple[int, str]]:
    return list(run.annotations.values_list("step", "text"))


def test_the_kl_coefficient_is_changed_where_a_run_has_one(actor: Actor, run: Run) -> None:
    browser = sign_in(actor)
    assert "Change KL coefficient" in browser.get(f"/runs/{run.pk}/").content.decode()
    browser.post(f"/runs/{run.pk}/kl-coefficient/", {"kl_coefficient": "0.2"})
    assert driving.take_orders(run, 7, is_replay=False).kl_coefficient == 0.2
    assert list_said(run) == [(7, "KL coefficient 0.2")]
    without = make_recipe_run(actor, make_base_model("other"))
    assert "Change KL coefficient" not in browser.get(f"/runs/{without.pk}/").content.decode()
    with pytest.raises(UserError, match="no KL coefficient"):
        steering.change_kl_coefficient(actor=actor, run=without, kl_coefficient=0.2)


@pytest.mark.parametrize("wrong", ["-1", "101", "nan", "", "much"])
def test_a_kl_coefficient_out_of_range_changes_nothing(actor: Actor, run: Run, wrong: str) -> None:
    answer = sign_in(actor).post(f"/runs/{run.pk}/kl-coefficient/", {"kl_coefficient": wrong})
    assert answer.status_code == 400
    run.refresh_from_db()
    assert run.steering == {}


def test_a_run_is_asked_once_to_stop_at_its_next_checkpoint(actor: Actor, run: Run) -> None:
    browser = sign_in(actor)
    assert not driving.wants_stop(run)
    browser.post(f"/runs/{run.pk}/actions/stop-after-save/")
    assert driving.wants_stop(run)
    page = browser.get(f"/runs/{run.pk}/parts/actions/").content.decode()
    assert "stops at its next checkpoint" in page
    assert "stop-after-save" not in page


def test_pause_and_stop_are_said_at_the_step_where_they_were_pressed(
    actor: Actor, run: Run
) -> None:
    steering.request_pause(actor=actor, run=run)
    steering.request_stop(actor=actor, run=run)
    assert list_said(run) == [(7, "paused"), (7, "stopped")]
    annotation = run.annotations.first()
    assert annotation is not None
    assert annotation.user == actor.user
