"""Curves: written once, read in parts, thinned without losing their extremes."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_run
from webapp.accounts.models import Actor, Role
from webapp.accounts.services import create_key
from webapp.runs.driving import record_step
from webapp.runs.history import (
    list_keys,
    read_metrics,
    record_metrics,
    record_optimizer_step,
)
from webapp.runs.models import Metric, Run
from webapp.runs.views import write_series

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def run() -> Run:
    return make_run(make_actor())


def test_a_step_that_is_recorded_again_keeps_its_first_value(run: Run) -> None:
    record_metrics(run, 1, {"loss": 2.0})
    record_metrics(run, 1, {"loss": 3.0, "epoch": 0})
    assert dict(Metric.objects.values_list("key", "value")) == {"loss": 2.0, "epoch": 0}


def test_what_is_not_finite_is_not_recorded(run: Run) -> None:
    record_metrics(run, 1, {"loss": math.nan, "grad_norm": math.inf, "epoch": 1})
    assert list_keys(run) == ["epoch"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_whose_loss_is_no_number_any_more_is_told_over_rest(run: Run, value: float) -> None:
    record_optimizer_step(run, {"loss": 2.0, "tokens_per_second": 9.0}, num_tokens=1)
    record_optimizer_step(run, {"loss": value, "tokens_per_second": value}, num_tokens=1)
    record_step(run, 2, {"loss": value})
    actor = Actor(user=run.project.members.get(), project=run.project, role=Role.OWNER)
    _, secret = create_key(actor=actor, name="k")
    answer = Client().get(f"/rest/runs/{run.pk}", headers={"authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.json()["last_loss"]) == (200, None)
    assert answer.json()["tokens_per_second"] == 9.0


def test_a_number_that_no_axis_holds_is_counted_beside_the_curve(run: Run) -> None:
    record_metrics(run, 1, {"loss": 2.0})
    record_metrics(run, 2, {"loss": 1.7e308})
    curve = write_series(read_metrics(run).series["loss"])
    assert (curve["values"], curve["left_out"]) == ([2.0], 1)


def test_optimizer_steps_are_counted_from_one(run: Run) -> None:
    steps = [
        record_optimizer_step(run, {"loss": 1.0 / step, "tokens_per_second": 9.0}, num_tokens=7)
        for step in (1, 2)
    ]
    run.refresh_from_db()
    assert steps == [1, 2]
    assert (run.step, run.num_tokens, run.last_loss, run.tokens_per_second) == (2, 14, 0.5, 9.0)


def test_one_slow_step_hardly_changes_the_speed_of_a_run(run: Run) -> None:
    for speed in (100.0, 100.0, 10.0):
        record_optimizer_step(run, {"tokens_per_second": speed}, num_tokens=1)
    run.refresh_from_db()
    assert run.tokens_per_second == pytest.approx(82.0)
    assert [point.value for point in read_metrics(run).series["tokens_per_second"]][-1] == 10.0


def test_a_page_that_was_away_reads_what_it_lacks(run: Run) -> None:
    for step in range(1, 4):
        record_metrics(run, step, {"loss": float(step), "epoch": 0})
    first = read_metrics(run, ["loss"])
    assert [(point.step, point.value) for point in first.series["loss"]] == [(1, 1), (2, 2), (3, 3)]
    assert "epoch" not in first.series
    record_metrics(run, 4, {"loss": 4.0})
    later = read_metrics(run, after_id=first.last_id)
    assert [point.step for point in later.series["loss"]] == [4]
    assert read_metrics(run, after_id=later.last_id).series == {}


def test_a_long_curve_keeps_its_extremes_and_its_ends(run: Run) -> None:
    values = [math.sin(step / 50) for step in range(5000)]
    values[1234], values[4321] = 99.0, -99.0
    Metric.objects.bulk_create(
        Metric(run=run, step=step, key="loss", value=value, at=NOON + timedelta(seconds=step))
        for step, value in enumerate(values)
    )
    points = read_metrics(run, max_points=200).series["loss"]
    assert [point.at for point in points] == [NOON + timedelta(seconds=p.step) for p in points]
    assert len(points) <= 200
    assert (points[0].step, points[-1].step) == (0, 4999)
    found = {point.step: point.value for point in points}
    assert (found[1234], found[4321]) == (99.0, -99.0)
    assert [point.step for point in points] == sorted(found)


def test_the_moments_of_more_points_than_one_question_takes_are_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.runs.history.TIMES_AT_ONCE", 2)
    for step in range(5):
        record_metrics(run, step, {"loss": float(step)})
    told = dict(Metric.objects.values_list("step", "at"))
    assert {point.step: point.at for point in read_metrics(run).series["loss"]} == told
