"""The paired comparison: counted right, and honest about what it cannot tell."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from tests.webapp.cast import make_actor, make_run
from tests.webapp.evals.cast import make_evaluation, make_suite
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.evals.changes import list_changes
from webapp.evals.comparison import compare
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.paired import compute_p_value, estimate_interval
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

serial = count()


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


def compare_scores(
    alice: Actor, first: Sequence[float | None], second: Sequence[float | None]
) -> Any:
    suite = make_suite(alice, len(first))
    return compare(make_evaluation(suite, first, "A"), make_evaluation(suite, second, "B"))


def test_wins_losses_and_ties_are_counted_by_item(alice: Actor) -> None:
    found = compare_scores(alice, [0, 0, 1, 1, 1], [1, 1, 0, 1, 1])
    assert (found.wins, found.losses, found.ties) == (2, 1, 2)
    assert (found.first_mean, found.second_mean) == (0.6, 0.8)
    assert found.difference == pytest.approx(20)


def test_what_got_worse_comes_first(alice: Actor) -> None:
    found = compare_scores(alice, [1, 0, 1, 0], [1, 1, 0, 0])
    assert [sample.change for sample in found.samples] == ["worse", "better", "same", "same"]
    assert [sample.index for sample in found.samples] == [2, 1, 0, 3]
    assert [sample.index for sample in found.flips] == [2, 1]
    assert found.samples[0].first.completion == "A 2"
    assert found.samples[0].second.completion == "B 2"


def test_a_clear_difference_is_said_with_its_interval(alice: Actor) -> None:
    found = compare_scores(alice, [0] * 41 + [1] * 23 + [1] * 436, [1] * 41 + [0] * 23 + [1] * 436)
    assert found.verdict == (
        "B is better on 41, worse on 23 of 500 (p = 0.033, +3.6 points [0.5, 6.8])."
    )


def test_a_difference_that_may_be_chance_is_called_that(alice: Actor) -> None:
    found = compare_scores(alice, [0] * 5 + [1] * 35, [1] * 5 + [0] * 3 + [1] * 32)
    assert not found.is_significant
    assert found.verdict.startswith("No difference can be told from these 40: B is better on 5")
    assert found.low < 0 < found.high


def test_equal_answers_are_no_difference(alice: Actor) -> None:
    found = compare_scores(alice, [0, 1, 1], [0, 1, 1])
    assert found.verdict == "No difference: both scored the same on all 3."
    assert found.p_value == 1.0


def test_an_item_without_two_answers_is_left_out_and_counted(alice: Actor) -> None:
    found = compare_scores(alice, [0, 1, None], [1, 1, 1])
    assert (len(found.samples), found.num_left_out) == (2, 1)


def test_another_grader_may_be_asked_for(alice: Actor) -> None:
    suite = make_suite(alice, 2)
    first, second = make_evaluation(suite, [0, 0]), make_evaluation(suite, [1, 1])
    assert compare(first, second, grader="contains").wins == 0
    with pytest.raises(UserError, match="no grader numeric"):
        compare(first, second, grader="numeric")


def test_evaluations_of_two_suites_are_not_compared(alice: Actor) -> None:
    first = make_evaluation(make_suite(alice, 1), [0])
    second = make_evaluation(make_suite(alice, 1), [0])
    with pytest.raises(UserError, match="one suite"):
        compare(first, second)


def test_an_evaluation_that_still_runs_is_not_compared(alice: Actor) -> None:
    suite = make_suite(alice, 1)
    running = make_evaluation(suite, [0], status=Evaluation.Status.RUNNING)
    with pytest.raises(UserError, match="has not finished"):
        compare(make_evaluation(suite, [0]), running)


def test_no_common_answer_is_said(alice: Actor) -> None:
    with pytest.raises(UserError, match="in common"):
        compare_scores(alice, [None, 1], [1, None])


def test_what_else_differs_is_listed(alice: Actor) -> None:
    suite = make_suite(alice, 1)
    greedy = {"sampling": {"temperature": 0.0, "seed": 1}}
    warm = {"sampling": {"temperature": 1.0, "seed": 1}}
    first = make_evaluation(suite, [0], "A", served=greedy)
    second = make_evaluation(suite, [0], "B", served=warm)
    changes = [(each.name, *each.values) for each in list_changes(first, second)]
    assert changes == [("weights", "A", "B"), ("temperature", "0", "1")]


def make_trained(alice: Actor, suite: EvalSuite, **config: Any) -> Evaluation:
    run = make_run(alice, BaseModel.objects.create(path=f"/models/{next(serial)}"))
    Run.objects.filter(pk=run.pk).update(config=config, name="sums", session=None)
    checkpoint = Checkpoint.objects.create(
        project=alice.project, run=run, base_model=run.base_model, name="final",
        kind=Checkpoint.Kind.TRAINING, step=40, seq=1, rank=8, size_bytes=1,
    )  # fmt: skip
    checkpoint.refresh_from_db()
    return make_evaluation(
        suite, [0], checkpoint=checkpoint, served={"digest": f"{next(serial):064d}"}
    )


def test_settings_of_two_runs_differ_in_words_and_only_where_they_differ(alice: Actor) -> None:
    suite = make_suite(alice, 1)
    sampling = {"prompts": ["a", "b", "c", "d"], "every": 10}
    first = make_trained(alice, suite, learning_rate=1e-4, seed=1, sampling=sampling)
    second = make_trained(
        alice, suite, learning_rate=1e-3, seed=1, sampling=sampling | {"prompts": ["a"]}
    )
    changes = {each.name: each for each in list_changes(first, second)}
    assert changes.keys() == {"learning_rate", "sampling prompts", "digest"}
    assert changes["learning_rate"].values == ("1e-4", "1e-3")
    assert changes["sampling prompts"].values == ("4 prompts", "1 prompt")
    assert changes["digest"].is_digest


def test_beside_a_base_model_a_run_is_one_sentence(alice: Actor) -> None:
    suite = make_suite(alice, 1)
    trained = make_trained(alice, suite, learning_rate=1e-3, seed=1)
    changes = {each.name: each for each in list_changes(make_evaluation(suite, [0], "A"), trained)}
    assert changes.keys() == {"weights", "trained", "digest"}
    assert changes["weights"].values == ("A", "sums, step 40")
    assert changes["trained"].values == (
        "not: the base model as it is",
        "40 steps, rank 8, learning rate 1e-3",
    )


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (3, 3, 1.0), (12, 2, 0.0129395)],
)
def test_the_p_value_is_the_exact_one(wins: int, losses: int, p_value: float) -> None:
    assert compute_p_value(wins, losses) == pytest.approx(p_value, abs=1e-6)
    assert compute_p_value(losses, wins) == compute_p_value(wins, losses)


def test_the_p_value_of_thousands_of_flips_is_a_number() -> None:
    assert 0 < compute_p_value(2000, 1800) < 0.01


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "neither", "low", "high"),
    [
        # Newcombe 1998, method 10; by the formula on paper the third has phi 0 and shares 1 and 1.
        (36, 12, 2, 0, 0.0569, 0.3404),
        (0, 0, 0, 54, -0.0664, 0.0664),
        (54, 0, 0, 0, -0.0664, 0.0664),
    ],
)
def test_the_interval_is_the_published_one(
    both: int, only_first: int, only_second: int, neither: int, low: float, high: float
) -> None:
    ours = (1,) * (both + only_first) + (0,) * (only_second + neither)
    theirs = (1,) * both + (0,) * only_first + (1,) * only_second + (0,) * neither
    assert estimate_interval(theirs, ours) == pytest.approx((low, high), abs=1e-4)


def test_parts_of_a_point_have_an_interval_around_their_mean_the_same_every_time() -> None:
    first, second = (0.2, 0.4, 0.6, 0.1) * 10, (0.3, 0.9, 0.6, 0.5) * 10
    low, high = estimate_interval(first, second)
    assert low < 0.25 < high
    assert high - low < 0.2
    assert estimate_interval(first, second) == (low, high)
