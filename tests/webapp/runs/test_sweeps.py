"""Sweeps: what a grid means, that all runs begin or none, and how they are compared."""

import json
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_viewer, sign_in
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.core.templatetags.hone import digits
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.runs.grids import list_points, parse_grid
from webapp.runs.group_table import find_varied, make_bands, read_curve, read_table, rises
from webapp.runs.history import record_metrics
from webapp.runs.models import Run, RunGroup
from webapp.runs.sweeps import create_sweep, stop_group

pytestmark = pytest.mark.django_db

GRID = {"learning_rate": [1e-3, 1e-2], "seed": [1, 2]}


@pytest.fixture
def actor() -> Actor:
    return make_actor()


def make_version(actor: Actor) -> DatasetVersion:
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="words"),
        number=1,
        status=DatasetVersion.Status.READY,
        filename="words.jsonl",
        format="jsonl",
        num_rows=10,
        size_bytes=4400,
    )


def sweep(actor: Actor, **changes: Any) -> RunGroup:
    launch = {
        "origin": "rest",
        "base_model": make_base_model(),
        "dataset_version": make_version(actor),
        "config": {"rank": 4, "steps": 4},
    }
    given: dict[str, Any] = {"name": "rates", "launch": launch, "grid": GRID, **changes}
    return create_sweep(actor=actor, **given)


def read_settings(group: RunGroup) -> list[tuple[float, int]]:
    runs = group.runs.order_by("created_at")
    return [(run.config["learning_rate"], run.config["seed"]) for run in runs]


def test_every_combination_is_a_run_with_the_settings_in_its_name(actor: Actor) -> None:
    group = sweep(actor)
    assert read_settings(group) == [(1e-3, 1), (1e-3, 2), (1e-2, 1), (1e-2, 2)]
    names = list(group.runs.order_by("created_at").values_list("name", flat=True))
    assert names[1] == "rates: learning_rate 0.001, seed 2"
    assert group.spec["grid"] == GRID
    assert {run.config["rank"] for run in group.runs.all()} == {4}


def test_a_list_of_combinations_is_taken_as_it_is(actor: Actor) -> None:
    points = [{"learning_rate": 1e-3, "rank": 8}, {"learning_rate": 1e-4, "rank": 16}]
    group = sweep(actor, grid=None, settings=points)
    assert [run.rank for run in group.runs.order_by("created_at")] == [8, 16]


def test_a_length_in_epochs_takes_the_place_of_one_in_steps(actor: Actor) -> None:
    group = sweep(actor, grid={"epochs": [1, 2]})
    assert [run.config["steps"] for run in group.runs.all()] == [None, None]


def test_one_wrong_value_begins_no_run_at_all(actor: Actor) -> None:
    with pytest.raises(UserError, match="learning_rate is 7"):
        sweep(actor, grid={"learning_rate": [1e-3, 7]})
    assert not Run.objects.exists()
    assert not RunGroup.objects.exists()


@pytest.mark.parametrize(
    ("grid", "points", "said"),
    [
        (None, None, "either grid"),
        ({"seed": [1]}, [{"seed": 1}], "either grid"),
        ({"seed": list(range(10)), "rank": list(range(1, 11))}, None, "100 runs"),
        ({f"s{place}": list(range(30)) for place in range(20)}, None, "at most 64"),
        ({"seed": []}, None, "list of 1 to"),
        ({"seed": list(range(33))}, None, "list of 1 to"),
        ({"seed": 3}, None, "list of 1 to"),
        ({"seed": [1, 1]}, None, "same settings"),
        (None, [{"seed": 1}, {"seed": 1}], "same settings"),
        (None, [{}], "at least one setting"),
        (None, [3], "at least one setting"),
        (None, [{"seed": place} for place in range(65)], "65 runs"),
        ({"sampling": [{"every": 1}]}, None, "not one value"),
        ({"seed": [[1]]}, None, "not one value"),
    ],
)
def test_what_is_no_sweep_is_said(grid: Any, points: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list_points(grid, points)


def test_a_grid_is_read_line_by_line() -> None:
    text = "learning_rate: 1e-4, 3e-4\n\n schedule: linear, cosine\ntrain_mlp: true, false\n"
    assert parse_grid(text) == {
        "learning_rate": [1e-4, 3e-4],
        "schedule": ["linear", "cosine"],
        "train_mlp": [True, False],
    }
    assert parse_grid("  \n") == {}
    with pytest.raises(UserError, match="not a setting with values"):
        parse_grid("learning_rate 1e-4")
    with pytest.raises(UserError, match="given twice"):
        parse_grid("seed: 1\nseed: 2")


def test_the_best_run_stands_first_and_unmeasured_ones_last(actor: Actor) -> None:
    group = sweep(actor)
    runs = list(group.runs.order_by("created_at"))
    pinned = runs[0].config["sampling"] | {"prompts": ["What is 1 + 1?"]}
    Run.objects.filter(pk=runs[0].pk).update(config={**runs[0].config, "sampling": pinned})
    for run, losses in zip(runs, ([3.0, 2.0], [3.0, 1.0, 1.5], [4.0]), strict=False):
        for step, loss in enumerate(losses, start=1):
            record_metrics(run, step, {"held_out_loss": loss, "loss": 9.0})
    table = read_table(group)
    assert (table.metric, table.varied) == ("held_out_loss", ["learning_rate", "seed"])
    assert [row.run for row in table.rows] == [runs[1], runs[0], runs[2], runs[3]]
    first = table.rows[0]
    assert first.best is not None
    assert first.last is not None
    assert (first.is_first, first.best.step, first.best.value, first.last.value) == (
        True,
        2,
        1.0,
        1.5,
    )
    assert table.rows[3].best is None


def test_more_is_better_of_a_reward(actor: Actor) -> None:
    group = sweep(actor)
    runs = list(group.runs.order_by("created_at"))
    for place, run in enumerate(runs):
        record_metrics(run, 1, {"reward/mean": place / 10})
    assert [row.run for row in read_table(group).rows] == runs[::-1]


@pytest.mark.parametrize(
    ("metric", "is_more_better"),
    [
        ("loss", False), ("kl/reference", False), ("frac_reward_zero_std", False),
        ("dpo/rejected_reward", False), ("reward/mean", True), ("dpo/margin", True),
        ("held_out/preferred", True), ("win_rate/optimal", True),
    ],
)  # fmt: skip
def test_the_best_of_a_metric_is_its_most_or_its_least(metric: str, is_more_better: bool) -> None:
    assert rises(metric) == is_more_better


def test_seeds_become_a_mean_with_its_spread_where_all_have_the_step(actor: Actor) -> None:
    group = sweep(actor)
    runs = list(group.runs.order_by("created_at"))
    for run, losses in zip(runs, ([2.0, 1.0], [4.0, 2.0], [5.0], [5.0]), strict=True):
        for step, loss in enumerate(losses, start=1):
            record_metrics(run, step, {"loss": loss})
    record_metrics(runs[0], 3, {"loss": 0.5})
    first, second = make_bands(runs, {run.pk: read_curve(run, "loss") for run in runs})
    assert (first.name, first.steps, first.means) == ("learning_rate 0.001", [1, 2], [3.0, 1.5])
    assert first.highs[0] == pytest.approx(3 + 2**0.5)  # sqrt(((2-3)^2 + (4-3)^2) / (2-1))
    assert first.lows[0] == pytest.approx(3 - 2**0.5)
    assert (second.means, second.lows) == ([5.0], [5.0])


@pytest.mark.parametrize("huge", [1.7e308, -1.7e308, 1e100])
def test_numbers_that_no_axis_holds_are_left_out_and_counted(actor: Actor, huge: float) -> None:
    group = sweep(actor)
    runs = list(group.runs.order_by("created_at"))
    for run, losses in zip(runs, ([2.0, huge], [4.0, -huge], [huge], [5.0]), strict=True):
        for step, loss in enumerate(losses, start=1):
            record_metrics(run, step, {"loss": loss})
    browser = sign_in(actor)
    found = browser.get(f"/runs/groups/{group.pk}/points?metric=loss")
    told = json.loads(found.content, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert told["left_out"] == 3
    assert [line["values"] for line in told["lines"]] == [[2.0], [4.0], [], [5.0]]
    assert [(band["steps"], band["means"]) for band in told["bands"]] == [([1], [3.0]), ([], [])]
    assert digits(huge) in browser.get(f"/runs/groups/{group.pk}/").content.decode()
    lines = b"".join(browser.get(f"/runs/groups/{group.pk}/points.csv")).decode()
    assert str(huge) in lines


def test_stages_of_different_recipes_are_not_told_apart_by_settings(actor: Actor) -> None:
    group = sweep(actor)
    first = group.runs.first()
    assert first is not None
    first.recipe = "dpo"
    first.save()
    assert find_varied(list(group.runs.all())) == []


def test_stopping_a_group_stops_what_goes_on(actor: Actor) -> None:
    group = sweep(actor)
    over = group.runs.first()
    assert over is not None
    Run.objects.filter(pk=over.pk).update(status=Run.Status.DONE)
    assert stop_group(actor=actor, group=group) == 3
    assert set(group.runs.values_list("status", flat=True)) == {"done", "cancelled"}


def test_pages_show_a_group_to_its_project_alone(actor: Actor) -> None:
    group = sweep(actor)
    run = group.runs.first()
    assert run is not None
    record_metrics(run, 1, {"loss": 1.25})
    browser = sign_in(actor)
    assert "rates" in browser.get("/runs/groups/").content.decode()
    page = browser.get(f"/runs/groups/{group.pk}/").content.decode()
    assert "learning rate" in page
    assert "1.250" in page
    points = browser.get(f"/runs/groups/{group.pk}/points?metric=loss").json()
    assert [line["values"] for line in points["lines"]].count([1.25]) == 1
    lines = b"".join(browser.get(f"/runs/groups/{group.pk}/points.csv")).decode().splitlines()
    assert lines[0] == "run,name,key,step,value,at"
    assert len(lines) == 2
    stranger = sign_in(make_actor("carol"))
    for path in ("", "points", "points.csv"):
        assert stranger.get(f"/runs/groups/{group.pk}/{path}").status_code == 404


def test_a_viewer_stops_no_group(actor: Actor) -> None:
    group = sweep(actor)
    viewer: Client = sign_in(make_viewer(actor))
    assert viewer.post(f"/runs/groups/{group.pk}/stop/").status_code == 400
    assert not group.runs.exclude(status="queued").exists()
