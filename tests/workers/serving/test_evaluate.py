"""Suites hold what runs hold out, and an evaluation ends with its last graded answer."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.workers.serving.conftest import Saved
from training.data.batches import split_held_out
from training.data.rows import Row
from training.recipes.graders import KINDS
from training.recipes.grading import GRADERS
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.evals import services
from webapp.evals.comparison import compare
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from workers.evaluate import build_suite, evaluate, fail, fail_suite
from workers.sandbox_jobs import MAKERS
from workers.tasks import build_suite as build_suite_task

Status = Evaluation.Status


def make_row(number: int, **columns: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": f"What is {number} + 1?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
    ]
    return {"messages": messages, **columns}


@pytest.fixture
def make_version(alice: Actor, saved: Saved, settings: Any) -> Callable[..., DatasetVersion]:
    settings.HONE_HOME = saved.home

    def make_version(rows: list[dict[str, Any]]) -> DatasetVersion:
        count = Dataset.objects.count()
        dataset = Dataset.objects.create(project=alice.project, name=f"sums {count}")
        path = saved.home / f"rows-{dataset.pk}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DatasetVersion.objects.create(
            project=alice.project,
            dataset=dataset,
            number=1,
            status=DatasetVersion.Status.READY,
            filename="rows.jsonl",
            format="jsonl",
            rows_path=path.name,
            num_rows=len(rows),
        )

    return make_version


@pytest.fixture
def make_suite(alice: Actor, make_version: Any) -> Callable[..., EvalSuite]:
    """A suite of some of 60 sums, not built yet."""

    def make_suite(rows: list[dict[str, Any]] | None = None, **columns: Any) -> EvalSuite:
        version = make_version(rows or [make_row(number) for number in range(60)])
        defaults: dict[str, Any] = {
            "name": f"sums {EvalSuite.objects.count()}",
            "graders": [{"name": "contains"}, {"name": "numeric"}],
            "held_out_share": 0.3,
            "sampling": {"max_tokens": 4},
        }
        return services.create_suite(actor=alice, dataset_version=version, **defaults | columns)

    return make_suite


def built(suite: EvalSuite) -> EvalSuite:
    build_suite(suite.pk)
    suite.refresh_from_db()
    return suite


def test_every_grader_has_somebody_who_runs_it() -> None:
    places = {"inline": set(GRADERS), "sandbox": set(MAKERS), "judge": {"llm_judge"}}
    for place, names in places.items():
        assert {name for name, kind in KINDS.items() if kind.place == place} == names


def test_a_suite_holds_the_rows_that_a_run_with_this_share_and_seed_holds_out(
    make_suite: Any,
) -> None:
    suite = built(make_suite(seed=5))
    rows = [Row(number=n + 1, messages=make_row(n)["messages"]) for n in range(60)]
    _, held_out = split_held_out(rows, share=0.3, seed=5)
    assert [item["row"] for item in suite.items] == [row.number for row in held_out]
    assert suite.num_items == len(suite.items) == len(held_out)


def test_the_last_answer_is_the_target_and_never_in_the_prompt(make_suite: Any) -> None:
    suite = built(make_suite())
    item = suite.items[0]
    assert [message["role"] for message in item["messages"]] == ["system", "user"]
    assert item["target"] == f"It is {item['row']}."


def test_prompts_with_a_reference_are_items_as_they_are_with_the_columns_of_their_graders(
    make_suite: Any,
) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Give {n} as JSON."}],
            "target": n,
            "schema": {"type": "integer", "minimum": n},
            "other": "x",
        }
        for n in (1, 2)
    ]
    graders = [{"name": "numeric"}, {"name": "json_schema"}]
    suite = built(make_suite(rows, held_out_share=1.0, graders=graders))
    assert suite.error == ""
    assert [item["target"] for item in suite.items] == ["1", "2"]
    assert suite.items[0]["messages"] == rows[0]["messages"]
    assert set(suite.items[0]["columns"]) == {"schema"}


def test_a_preference_is_neither_asked_nor_answered(make_suite: Any) -> None:
    pair = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": []}
    rows = [{"messages": [{"role": "user", "content": "?"}], **pair}]
    suite = make_suite(rows, held_out_share=1.0, graders=[{"name": "contains"}])
    build_suite_task(suite.pk)
    suite.refresh_from_db()
    assert "No row with an answer" in suite.error


def test_a_limit_takes_a_part_that_does_not_depend_on_the_order_of_the_file(
    make_suite: Any,
) -> None:
    rows = [make_row(number) for number in range(60)]
    one = built(make_suite(rows, limit=5))
    other = built(make_suite(rows[::-1], limit=5))
    assert {item["target"] for item in one.items} == {item["target"] for item in other.items}
    assert one.num_items == 5


def test_short_columns_are_kept_to_cut_comparisons_by(make_suite: Any) -> None:
    rows = [make_row(n, level=n % 2, topic="sums", essay="x" * 61, parts=[1]) for n in range(4)]
    suite = built(make_suite(rows, held_out_share=1.0))
    assert suite.items[1]["metadata"] == {"level": 1, "topic": "sums"}
    assert "metadata" not in built(make_suite()).items[0]


def test_equal_rows_count_once(make_suite: Any) -> None:
    assert built(make_suite([make_row(1)] * 3, held_out_share=1.0)).num_items == 1


def test_the_same_rows_and_settings_give_the_same_digest(make_suite: Any) -> None:
    one, same, other = make_suite(), make_suite(), make_suite(sampling={"max_tokens": 5})
    assert built(one).digest == built(same).digest != built(other).digest


def test_a_grader_may_compare_with_a_column_of_the_row(make_suite: Any) -> None:
    accepted = {"name": "add", "arguments": {"a": [1]}}
    rows = [make_row(1, target=accepted)]
    suite = built(make_suite(rows, held_out_share=1.0, graders=[{"name": "accepted_call"}]))
    assert json.loads(suite.items[0]["columns"]["target"]) == accepted


def test_a_suite_whose_rows_lack_what_a_grader_needs_says_which_row(make_suite: Any) -> None:
    suite = make_suite(held_out_share=1.0, graders=[{"name": "accepted_call"}])
    build_suite_task(suite.pk)
    suite.refresh_from_db()
    assert suite.status == EvalSuite.Status.FAILED
    assert "Row 1 has no column target" in suite.error


def test_a_suite_with_nothing_held_out_fails(make_suite: Any) -> None:
    suite = make_suite([make_row(1)], held_out_share=1e-9)
    build_suite_task(suite.pk)
    suite.refresh_from_db()
    assert "raise held_out_share" in suite.error


def test_an_evaluation_is_answered_graded_and_ended(
    make_suite: Any, alice: Actor, checkpoint: Checkpoint, work: Any
) -> None:
    suite = built(make_suite(limit=4))
    evaluation = services.request_evaluation(actor=alice, suite=suite, checkpoint=checkpoint)
    evaluate(evaluation.pk)
    work()
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.num_done) == (Status.DONE, 4)
    assert set(evaluation.scores) == {"contains", "numeric"}
    result = evaluation.results.get(index=0)
    assert (result.num_tokens, set(result.scores)) == (4, {"contains", "numeric"})
    assert evaluation.served["digest"] == checkpoint.digest
    assert (result.checkpoint, result.digest) == (checkpoint, checkpoint.digest)
    assert evaluation.served["sampling"]["max_tokens"] == 4
    assert len(evaluation.served["template"]) == 64


def test_two_evaluations_of_the_same_weights_show_no_difference(
    make_suite: Any, alice: Actor, checkpoint: Checkpoint, work: Any
) -> None:
    suite = built(make_suite(limit=4))
    both = [
        services.request_evaluation(actor=alice, suite=suite, checkpoint=checkpoint)
        for _ in range(2)
    ]
    for evaluation in both:
        evaluate(evaluation.pk)
    work()
    first, second = Evaluation.objects.select_related("suite").order_by("created_at")
    assert compare(first, second).verdict == "No difference: both scored the same on all 4."


def test_an_evaluation_that_is_sent_twice_asks_once(
    make_suite: Any, alice: Actor, base_model: BaseModel
) -> None:
    suite = built(make_suite(limit=3))
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    evaluate(evaluation.pk)
    evaluate(evaluation.pk)
    assert SamplingCall.objects.count() == 3


def test_an_evaluation_of_a_suite_that_is_being_built_waits_for_it(
    make_suite: Any, alice: Actor, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite(limit=3)
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    evaluate(evaluation.pk)
    assert not SamplingCall.objects.exists()
    sent: list[tuple[str, ...]] = []
    monkeypatch.setattr(services, "send_task", lambda *args: sent.append(args))
    built(suite)
    assert sent == [("evals.evaluate", evaluation.pk)]


def test_an_evaluation_of_weights_that_cannot_be_proven_fails_with_the_reason(
    make_suite: Any, alice: Actor, save: Any, work: Any
) -> None:
    suite = built(make_suite(limit=3))
    broken = save("first", digest="0" * 64)
    evaluation = services.request_evaluation(actor=alice, suite=suite, checkpoint=broken)
    evaluate(evaluation.pk)
    work()
    evaluation.refresh_from_db()
    assert evaluation.status == Status.FAILED
    assert "changed on disk" in evaluation.error


def test_a_cancelled_evaluation_leaves_no_call_waiting(
    make_suite: Any, alice: Actor, base_model: BaseModel, work: Any
) -> None:
    suite = built(make_suite(limit=3))
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    evaluate(evaluation.pk)
    services.cancel_evaluation(actor=alice, evaluation=evaluation)
    work()
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.num_done) == (Status.CANCELLED, 0)
    assert set(SamplingCall.objects.values_list("status", flat=True)) == {"cancelled"}


def test_an_evaluation_whose_last_call_vanished_is_ended(
    make_suite: Any, alice: Actor, base_model: BaseModel, work: Any
) -> None:
    suite = built(make_suite(limit=3))
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    evaluate(evaluation.pk)
    SamplingCall.objects.filter(about__index=2).delete()
    work()
    services.settle_abandoned()
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.num_done) == (Status.DONE, 2)


def test_what_went_wrong_stands_on_the_row(
    make_suite: Any, alice: Actor, base_model: BaseModel
) -> None:
    suite = make_suite()
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    fail_suite(suite.pk, "The rows are gone.")
    evaluation.refresh_from_db()
    assert evaluation.error == "The suite could not be built: The rows are gone."
    fail(evaluation.pk, "again")
    evaluation.refresh_from_db()
    assert "again" not in evaluation.error
