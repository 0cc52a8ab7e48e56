"""Runs in the browser: who sees them, the list, the curves, what may be pressed."""

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import (
    count_queries,
    make_actor,
    make_base_model,
    make_run,
    make_viewer,
    sign_in,
)
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.history import record_metrics
from webapp.runs.models import LogLine, Metric, Origin, Run, Sample
from webapp.runs.progress import estimate_rests, read_stats

pytestmark = pytest.mark.django_db

TABS = ("charts", "samples", "checkpoints", "evals", "config", "log", "integrity")


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


def make_recipe_run(actor: Actor, base_model: BaseModel | None = None, **columns: object) -> Run:
    return Run.objects.create(
        **{
            "project": actor.project,
            "created_by": actor.user,
            "name": "a recipe's run",
            "origin": Origin.BROWSER,
            "recipe": "sft",
            "status": Run.Status.RUNNING,
            "base_model": base_model or make_base_model(),
            "rank": 8,
            "config": {"learning_rate": 1e-3, "sampling": {"prompts": [], "every": 0}},
            "total_steps": 40,
            **columns,
        }
    )


@pytest.mark.parametrize(
    "path",
    ["", "metrics", "metrics.csv", "parts/stats/", "parts/actions/", *(f"?tab={t}" for t in TABS)],
)
def test_another_projects_run_is_not_there(browser: Client, path: str) -> None:
    theirs = make_run(make_actor("carol"))
    assert browser.get(f"/runs/{theirs.pk}/{path}").status_code == 404


@pytest.mark.parametrize("action", ["pause", "resume", "stop", "save", "evaluate"])
def test_another_projects_run_cannot_be_steered(browser: Client, action: str) -> None:
    theirs = make_recipe_run(make_actor("carol"))
    assert browser.post(f"/runs/{theirs.pk}/actions/{action}/").status_code == 404
    theirs.refresh_from_db()
    assert (theirs.status, theirs.wish, theirs.steering) == ("running", "", {})


@pytest.mark.parametrize("action", ["pause", "stop", "save", "evaluate"])
def test_a_viewer_sees_a_run_and_cannot_act_on_it(alice: Actor, action: str) -> None:
    run = make_recipe_run(alice)
    browser = Client()
    browser.force_login(make_viewer(alice).user)
    page = browser.get(f"/runs/{run.pk}/")
    assert page.status_code == 200
    assert b"Save now" not in page.content
    assert browser.post(f"/runs/{run.pk}/actions/{action}/").status_code == 400
    run.refresh_from_db()
    assert (run.wish, run.steering) == ("", {})


def test_pressing_a_button_leaves_a_wish_for_the_recipe(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(alice)
    browser.post(f"/runs/{run.pk}/actions/save/")
    browser.post(f"/runs/{run.pk}/actions/pause/")
    run.refresh_from_db()
    assert (run.wish, run.steering["save_now"]) == ("pause", True)
    assert b"pausing" in browser.get(f"/runs/{run.pk}/parts/actions/").content


def test_an_action_nobody_knows_is_404(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(alice)
    assert browser.post(f"/runs/{run.pk}/actions/explode/").status_code == 404


def test_the_learning_rate_is_changed_in_range_only(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(alice)
    assert browser.post(f"/runs/{run.pk}/learning-rate/", {"learning_rate": "7"}).status_code == 400
    browser.post(f"/runs/{run.pk}/learning-rate/", {"learning_rate": "2e-4"})
    run.refresh_from_db()
    assert run.steering["learning_rate"] == 2e-4


def test_every_tab_of_a_clients_run_and_of_a_recipes_run_opens(
    alice: Actor, browser: Client
) -> None:
    base_model = make_base_model()
    for run in (make_run(alice, base_model), make_recipe_run(alice, base_model)):
        record_metrics(run, 1, {"loss": 2.5, "held_out_loss": 2.25})
        LogLine.objects.create(run=run, text="It began.")
        for tab in TABS:
            assert browser.get(f"/runs/{run.pk}/?tab={tab}").status_code == 200
    assert browser.get(f"/runs/{run.pk}/?tab=nothing").status_code == 404


def test_the_list_takes_the_same_queries_for_one_program_and_for_five(
    alice: Actor, browser: Client
) -> None:
    base_model = make_base_model()
    make_run(alice, base_model)
    once = count_queries(browser, "/runs/")
    for _ in range(4):
        make_run(alice, base_model)
    assert count_queries(browser, "/runs/") == once


def record_paced_steps(run: Run, gaps: Sequence[float]) -> None:
    """One loss more than there are gaps between the steps, in seconds."""
    at = now() - timedelta(days=1)
    for step, gap in enumerate([0.0, *gaps], 1):
        at += timedelta(seconds=gap)
        Metric.objects.create(run=run, step=step, key="loss", value=1.0, at=at)


def test_a_clients_run_goes_by_the_recipe_that_its_program_names(
    alice: Actor, browser: Client
) -> None:
    run = make_run(alice)
    assert "own loop" in browser.get("/runs/").content.decode()
    Run.objects.filter(pk=run.pk).update(config={"recipe_name": "recipe_math_rl"})
    assert ">math_rl<" in browser.get("/runs/").content.decode()
    assert "own loop, math_rl" in browser.get(f"/runs/{run.pk}/").content.decode()


def test_what_is_left_of_a_run_is_counted_without_its_pauses(alice: Actor) -> None:
    run = make_recipe_run(alice, step=20)
    assert estimate_rests([run]) == {}
    record_paced_steps(run, [2.0, 2.0, 3600.0, 2.0])
    assert estimate_rests([run])[run.pk] == pytest.approx(40.0)
    run.status = Run.Status.PAUSED
    assert estimate_rests([run]) == {}


def test_an_ended_run_says_its_mean_speed_and_not_its_last(alice: Actor) -> None:
    run = make_recipe_run(alice, status=Run.Status.DONE, tokens_per_second=10.0)
    assert read_stats(run).tokens_per_second == 10.0
    for step, speed in enumerate((100.0, 300.0), 1):
        record_metrics(run, step, {"tokens_per_second": speed})
    assert read_stats(run).tokens_per_second == pytest.approx(150.0)


def test_an_ended_run_offers_what_to_do_with_its_last_checkpoint(
    alice: Actor, browser: Client
) -> None:
    run = make_recipe_run(alice)
    for step, is_ephemeral in ((20, False), (40, False), (50, True)):
        newest = Checkpoint.objects.create(
            project=alice.project, run=run, base_model=run.base_model, name=f"step-{step}",
            kind=Checkpoint.Kind.TRAINING, step=step, seq=step, size_bytes=1, rank=8,
            is_ephemeral=is_ephemeral,
        )  # fmt: skip
    newest = run.checkpoints.get(step=40)
    path = f"/runs/{run.pk}/parts/actions/"
    assert newest.pk not in browser.get(path).content.decode()
    Run.objects.update(status=Run.Status.DONE)
    page = browser.get(path).content.decode()
    for url in ("/playground/?left=", "/deployments/new/?checkpoint=", "/evals/new/?checkpoint="):
        assert f'href="{url}{newest.pk}"' in page


def test_the_head_of_a_run_says_loss_progress_and_what_is_left(
    alice: Actor, browser: Client
) -> None:
    run = make_recipe_run(alice, step=10, last_loss=0.693147, started_at=now())
    record_metrics(run, 10, {"held_out_loss": 0.75})
    record_paced_steps(run, [6.4] * 8 + [7200.0])
    page = browser.get(f"/runs/{run.pk}/parts/stats/").content.decode()
    assert "0.6931" in page
    assert "at step 10" in page
    assert "of 40" in page
    assert "about 3 m 1" in page


def test_a_failed_run_says_why(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(
        alice, status="failed", error="no row is left", error_category="user", ended_at=now()
    )
    assert b"no row is left" in browser.get(f"/runs/{run.pk}/").content
    assert b"no row is left" in browser.get("/").content


def test_metrics_after_an_id_are_only_the_new_ones(alice: Actor, browser: Client) -> None:
    run = make_run(alice)
    record_metrics(run, 1, {"loss": 2.0})
    first = browser.get(f"/runs/{run.pk}/metrics").json()
    assert first["series"]["loss"]["values"] == [2.0]
    record_metrics(run, 2, {"loss": 1.5})
    second = browser.get(f"/runs/{run.pk}/metrics?after={first['last']}").json()
    assert (second["series"]["loss"]["steps"], second["series"]["loss"]["values"]) == ([2], [1.5])
    third = browser.get(f"/runs/{run.pk}/metrics?after={second['last']}").json()
    assert third == {"last": second["last"], "series": {}}
    assert browser.get(f"/runs/{run.pk}/metrics?after=x").status_code == 400


def test_a_long_curve_is_thinned_and_keeps_its_extremes(alice: Actor, browser: Client) -> None:
    run = make_run(alice)
    metrics = run.metrics
    metrics.bulk_create(
        metrics.model(run=run, step=step, key="loss", value=9.0 if step == 4321 else 1.0)
        for step in range(6000)
    )
    points = browser.get(f"/runs/{run.pk}/metrics").json()["series"]["loss"]
    assert len(points["steps"]) <= 5000
    assert max(points["values"]) == 9.0
    assert (points["steps"][0], points["steps"][-1]) == (0, 5999)


def test_the_csv_holds_every_point_of_the_asked_key(alice: Actor, browser: Client) -> None:
    run = make_run(alice)
    record_metrics(run, 1, {"loss": 2.0, "grad_norm": 1.0})
    answer = browser.get(f"/runs/{run.pk}/metrics.csv?key=loss")
    lines = answer.getvalue().decode().splitlines()
    assert lines[0] == "key,step,value,at"
    assert [line.split(",")[:3] for line in lines[1:]] == [["loss", "1", "2.0"]]


def test_samples_are_a_strip_a_prompt_and_tokens_come_on_demand(
    alice: Actor, browser: Client
) -> None:
    run = make_recipe_run(alice)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    for step in (0, 10):
        sample = Sample.objects.create(
            run=run,
            step=step,
            prompt_index=0,
            prompt=prompt,
            completion=f"The answer at {step}",
            tokens=[{"text": "answer", "id": 5, "logprob": -4.0}],
        )
    page = browser.get(f"/runs/{run.pk}/?tab=samples")
    assert page.context["film"].steps == [0, 10]
    assert b"The answer at <mark>10</mark>" in page.content
    tokens = browser.get(f"/runs/{run.pk}/samples/{sample.pk}/").content.decode()
    assert "doubt-4" in tokens
    other = make_run(alice, run.base_model)
    assert browser.get(f"/runs/{other.pk}/samples/{sample.pk}/").status_code == 404


def test_text_of_a_model_is_never_markup(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(alice, name="<script>alert(1)</script>")
    Sample.objects.create(
        run=run, step=0, prompt_index=0, prompt="<b>x</b>", completion="<img src=x onerror=y>"
    )
    page = browser.get(f"/runs/{run.pk}/?tab=samples").content.decode()
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_the_list_takes_the_same_queries_for_one_run_and_for_thirty(
    alice: Actor, browser: Client, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    base_model = make_base_model()
    make_recipe_run(alice, base_model)
    with django_assert_num_queries(9):
        browser.get("/runs/")
    for number in range(30):
        make_recipe_run(alice, base_model, name=f"run {number}")
    with django_assert_num_queries(9):
        assert b"run 29" in browser.get("/runs/").content


def test_the_list_is_filtered_by_text_and_status(alice: Actor, browser: Client) -> None:
    base_model = make_base_model()
    make_recipe_run(alice, base_model, name="alpha")
    make_recipe_run(alice, base_model, name="beta", status="done")
    make_run(make_actor("carol"), base_model)

    def names(query: str) -> list[str]:
        return [run.name for run in browser.get(f"/runs/?{query}").context["page"].rows]

    assert names("q=alph") == ["alpha"]
    assert names("status=done") == ["beta"]
    assert names("q=tiny-chatml+browser&sort=name") == ["alpha", "beta"]
    assert names("q=nothing-like-it") == []
    assert b"No run matches" in browser.get("/runs/?q=nothing-like-it").content


@pytest.mark.parametrize(
    "sort", ["name", "-name", "status", "step", "-step", "loss", "-loss", "-speed", "created"]
)
def test_pages_of_a_sorted_list_show_every_run_once(
    alice: Actor, browser: Client, sort: str
) -> None:
    base_model = make_base_model()
    for number in range(57):
        make_recipe_run(
            alice,
            base_model,
            name=f"run {number % 7}",
            step=number % 5,
            last_loss=None if number % 3 else number / 10,
        )
    first = browser.get(f"/runs/?sort={sort}").context["page"]
    second = browser.get(f"/runs/?sort={sort}&cursor={first.next}").context["page"]
    seen = [run.pk for run in [*first.rows, *second.rows]]
    assert (len(first.rows), len(seen), len(set(seen)), second.next) == (50, 57, 57, "")


@pytest.mark.parametrize(
    "content",
    [b"zzz", b"[null, 1]", b'["x", []]', b'[{"at": 1}, 1]', b"[[1], 1]", b"[1]", b"[" * 9000],
)
def test_a_damaged_cursor_is_refused(browser: Client, content: bytes) -> None:
    cursor = urlsafe_b64encode(content).decode()
    assert browser.get("/runs/", {"cursor": cursor}).status_code == 400


def test_the_overview_shows_first_steps_and_then_what_runs(alice: Actor, browser: Client) -> None:
    assert b"Upload a dataset" in browser.get("/").content
    make_recipe_run(alice, name="at work", step=3, last_loss=1.0)
    page = browser.get("/").content.decode()
    assert "at work" in page
    assert "step 3 of 40" in page
    assert "First steps" not in page


def test_a_worker_says_what_it_trains_by_name_and_only_counts_what_is_not_ours(
    alice: Actor, browser: Client
) -> None:
    base_model = make_base_model("lab/small")
    ours = make_recipe_run(alice, base_model, name="our run")
    theirs = make_recipe_run(make_actor("carol"), base_model, name="their run")
    holds = {"base_models": [base_model.pk], "runs": [ours.pk, theirs.pk]}
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, holds=holds)
    Worker.objects.create(
        name="s1", kind=Worker.Kind.SAMPLER, holds={"server": "s1/abc", "calls": 2}
    )
    page = " ".join(browser.get("/").content.decode().split())
    assert f'trains <a href="/runs/{ours.pk}/">our run</a> and 1 run of other projects' in page
    assert "2 calls in flight" in page
    assert "their run" not in page
    assert "s1/abc" not in page
    Run.objects.update(status=Run.Status.DONE)
    assert "idle, holds small" in " ".join(browser.get("/").content.decode().split())


def test_when_nothing_runs_the_overview_shows_what_was_last(alice: Actor, browser: Client) -> None:
    base_model = make_base_model()
    for number in range(7):
        make_recipe_run(
            alice, base_model, name=f"run {number}", status="done", last_loss=0.5 + number,
            ended_at=now() - timedelta(hours=number),
        )  # fmt: skip
    page = browser.get("/").content.decode()
    assert "run 4" in page
    assert "4.500" in page
    assert "run 5" not in page


def test_the_overview_takes_the_same_queries_for_one_run_and_for_ten(
    alice: Actor, browser: Client, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    base_model = make_base_model()
    make_recipe_run(alice, base_model)
    with django_assert_num_queries(20):
        browser.get("/")
    for number in range(9):
        record_metrics(make_recipe_run(alice, base_model, name=f"run {number}"), 1, {"loss": 1.0})
    with django_assert_num_queries(20):
        browser.get("/")


def test_checkpoints_of_a_run_lead_to_a_branch(alice: Actor, browser: Client) -> None:
    run = make_recipe_run(alice)
    checkpoint = Checkpoint.objects.create(
        project=alice.project,
        run=run,
        base_model=run.base_model,
        name="step-20",
        kind=Checkpoint.Kind.TRAINING,
        step=20,
        seq=40,
        path="checkpoints/x",
        digest="ab" * 32,
        size_bytes=2048,
        rank=8,
    )
    page = browser.get(f"/runs/{run.pk}/?tab=checkpoints").content.decode()
    assert f"/runs/new/?parent={checkpoint.pk}" in page
    assert "2.0 KiB" in page
