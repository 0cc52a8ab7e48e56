"""Checkpoints by suites, and scores against steps."""

import csv
import io

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import count_queries, make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import read
from tests.webapp.evals.cast import find_model, make_evaluation, make_suite, make_trained
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.evals.matrix import Matrix, read_matrix
from webapp.evals.models import Evaluation
from webapp.evals.steps import draw, read_points


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


def cells(matrix: Matrix) -> dict[str, list[tuple[float | None, float | None]]]:
    return {
        subject.name: [
            (each.score, each.change if each.change is None else round(each.change, 6))
            for each in found
        ]
        for subject, found in matrix.rows
    }


def test_each_cell_is_the_newest_score_beside_the_baselines(alice: Actor) -> None:
    sums, words = make_suite(alice, 4, name="sums"), make_suite(alice, 2, name="words")
    early, late = make_trained(alice, "run", 10), make_trained(alice, "run", 20)
    make_evaluation(sums, [1, 0, 0, 0])
    make_evaluation(sums, [0, 0, 0, 0], checkpoint=early)
    make_evaluation(sums, [1, 1, 0, 0], checkpoint=early)
    make_evaluation(words, [1, 0], checkpoint=late)
    matrix = read_matrix(alice)
    assert [suite.name for suite in matrix.suites] == ["words", "sums"]
    assert cells(matrix) == {
        "model": [(None, None), (0.25, None)],
        "run, step 10": [(None, None), (0.5, 25.0)],
        "run, step 20": [(0.5, None), (None, None)],
    }
    assert [each.shade for _, found in matrix.rows for each in found if each.change] == ["better-3"]
    turned = read_matrix(alice, baseline=early.pk)
    assert cells(turned)["model"] == [(None, None), (0.25, -25.0)]


def test_the_page_offers_what_is_missing_and_links_what_is_there(
    browser: Client, alice: Actor
) -> None:
    sums, words = make_suite(alice, 4, name="sums"), make_suite(alice, 2, name="words")
    tuned = make_trained(alice, "run", 10)
    base = make_evaluation(sums, [1, 0, 0, 0])
    mine = make_evaluation(sums, [1, 1, 1, 0], checkpoint=tuned)
    page = read(browser, "/evals/matrix/")
    assert f"evaluations={base.pk},{mine.pk}" in page
    assert "+50.0" in page
    assert 'aria-label="Evaluate run, step 10 on words"' in page
    data = {"suite": words.pk, "target": tuned.pk}
    assert browser.post("/evals/new/", data).status_code == 302
    assert 'aria-label="Evaluate run, step 10 on words"' not in read(browser, "/evals/matrix/")
    assert "Evaluate run" not in read(sign_in(make_viewer(alice)), "/evals/matrix/")
    Checkpoint.objects.filter(pk=tuned.pk).update(deleted_at=now())
    Evaluation.objects.filter(suite=words).delete()
    assert "Evaluate run" not in read(browser, "/evals/matrix/")


def test_one_run_is_shown_with_the_checkpoints_that_were_never_evaluated(alice: Actor) -> None:
    sums = make_suite(alice, 4, name="sums")
    mine = make_trained(alice, "run", 10)
    make_trained(alice, "run", 20)
    make_evaluation(sums, [1, 1, 0, 0], checkpoint=mine)
    make_evaluation(sums, [1] * 4, checkpoint=make_trained(alice, "other", 5))
    make_evaluation(sums, [1] * 4, name="unrelated")
    assert list(cells(read_matrix(alice, run=mine.run_id))) == ["run, step 10", "run, step 20"]


def test_empty_and_odd_addresses_are_answered(browser: Client, alice: Actor) -> None:
    assert "Nothing was evaluated yet" in read(browser, "/evals/matrix/?run=x&baseline=%00")
    assert "No checkpoint of a run was evaluated yet" in read(browser, "/evals/steps/?run=x")
    assert len(browser.get("/evals/steps/csv/").content.splitlines()) == 1
    suite = make_suite(alice, 2)
    make_evaluation(suite, [1, 0], checkpoint=make_trained(alice, "run", 10))
    assert "run, step 10" in read(browser, "/evals/matrix/?baseline=nothing")
    assert "run, step 10" in read(browser, "/evals/steps/?run=x&suite=y&grader=%00")
    stranger = sign_in(make_actor("charlie"))
    assert "run, step 10" not in read(stranger, f"/evals/steps/?suite={suite.pk}")
    assert "run, step 10" not in read(stranger, "/evals/matrix/")


def test_the_matrix_takes_the_same_queries_for_few_rows_and_for_many(
    browser: Client, alice: Actor
) -> None:
    suite = make_suite(alice, 2)
    make_evaluation(suite, [1, 0], checkpoint=make_trained(alice, "run", 10))
    count_queries(browser, "/evals/matrix/")
    few = count_queries(browser, "/evals/matrix/")
    for step in range(20, 60, 10):
        make_evaluation(suite, [1, 0], checkpoint=make_trained(alice, "run", step))
    assert count_queries(browser, "/evals/matrix/") == few


def test_scores_stand_against_steps_with_wilsons_intervals(browser: Client, alice: Actor) -> None:
    suite = make_suite(alice, 10, name="sums")
    for step, right in ((40, 8), (10, 4)):
        checkpoint = make_trained(alice, "run", step)
        make_evaluation(suite, [1] * right + [0] * (10 - right), checkpoint=checkpoint)
    make_evaluation(suite, [1] + [0] * 9)
    points = read_points(checkpoint.run, suite, "exact_match")
    assert [(point.step, point.score) for point in points] == [(0, 0.1), (10, 0.4), (40, 0.8)]
    # Wilson of 4 and of 8 in 10, as computed by hand in test_paired.py.
    assert (points[1].low, points[1].high) == pytest.approx((0.168180, 0.687326), abs=2e-6)
    assert (points[2].low, points[2].high) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    page = read(browser, f"/evals/steps/?run={checkpoint.run_id}&suite={suite.pk}")
    assert "step 0, the base model as it is: 10 %" in page
    assert "49 % to 94.3 %" in page
    content = browser.get(f"/evals/steps/csv/?run={checkpoint.run_id}").content.decode()
    lines = list(csv.DictReader(io.StringIO(content)))
    assert [line["step"] for line in lines] == ["0", "10", "40"]
    assert float(lines[2]["high"]) == points[2].high


def test_the_drawing_keeps_every_interval_inside(alice: Actor) -> None:
    suite = make_suite(alice, 4)
    for step, scores in ((5, [0, 0, 0, 0]), (6, [1, 1, 1, 1]), (90, [0.5, 0.25, 1, 0])):
        checkpoint = make_trained(alice, "run", step)
        make_evaluation(suite, scores, checkpoint=checkpoint)
    drawing = draw(read_points(checkpoint.run, suite, "exact_match"))
    for mark in drawing.marks:
        assert 0 <= mark.top <= mark.y <= mark.bottom <= drawing.bottom
        assert drawing.left <= mark.x <= drawing.right
    one = draw(read_points(checkpoint.run, suite, "exact_match")[:1])
    assert one.columns[0][1] == "5"
    assert find_model().name == "model"


def test_a_step_that_was_evaluated_twice_shows_the_newest(alice: Actor) -> None:
    suite = make_suite(alice, 2)
    checkpoint = make_trained(alice, "run", 10)
    make_evaluation(suite, [0, 0], checkpoint=checkpoint)
    make_evaluation(suite, [1, 1], checkpoint=checkpoint)
    (point,) = read_points(checkpoint.run, suite, "exact_match")
    assert point.score == 1.0
