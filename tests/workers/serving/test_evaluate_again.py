"""Several samples, answers that are known, judges, and graders that take their time."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from webapp.accounts.models import Actor, Membership, Role
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import SamplingCall
from webapp.evals import services
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs.models import Metric, Run
from webapp.runs.records import Annotation
from workers.evaluate import build_suite, evaluate, grade_evaluation, grade_rest
from workers.tasks import build_suite as build_suite_task

Status = Evaluation.Status
ITEMS = [{"prompt": f"What is {n} + 1?", "target": str(n + 1)} for n in range(4)]
TALKATIVE = {"max_tokens": 4, "temperature": 1.0}


@pytest.fixture
def make_suite(alice: Actor) -> Callable[..., EvalSuite]:
    def make_suite(items: Any = None, **columns: Any) -> EvalSuite:
        defaults: dict[str, Any] = {
            "name": f"sums {EvalSuite.objects.count()}",
            "spec": {"source": "items", "items": items or ITEMS},
            "graders": [{"name": "numeric"}],
            "sampling": {"max_tokens": 4},
        }
        suite = services.create_suite(actor=alice, **defaults | columns)
        build_suite_task(suite.pk)
        suite.refresh_from_db()
        return suite

    return make_suite


@pytest.fixture
def ask(alice: Actor, checkpoint: Checkpoint, work: Any) -> Callable[..., Evaluation]:
    def ask(suite: EvalSuite, **columns: Any) -> Evaluation:
        evaluation = services.request_evaluation(
            actor=alice, suite=suite, checkpoint=checkpoint, **columns
        )
        evaluate(evaluation.pk)
        work()
        grade_evaluation(evaluation.pk)
        evaluation.refresh_from_db()
        return evaluation

    return ask


def test_every_sample_of_an_item_has_a_seed_of_its_own(make_suite: Any, ask: Any) -> None:
    evaluation = ask(make_suite(sampling={**TALKATIVE, "num_samples": 3, "seed": 5}))
    assert (evaluation.status, evaluation.num_done) == (Status.DONE, 12)
    seeds = {
        (call.about["index"], call.about["sample"]): call.payload["params"]["seed"]
        for call in SamplingCall.objects.all()
    }
    assert seeds == {(index, sample): 5 + sample for index in range(4) for sample in range(3)}
    assert len({result.completion for result in evaluation.results.filter(index=0)}) > 1
    assert set(evaluation.scores) == {
        "numeric", "numeric/pass@1", "numeric/pass@2", "numeric/pass@3"
    }  # fmt: skip


def test_answers_of_the_same_weights_are_taken_over_and_counted(make_suite: Any, ask: Any) -> None:
    first = ask(make_suite())
    again = ask(make_suite(graders=[{"name": "contains"}, {"name": "numeric"}]))
    assert (first.num_known, again.num_known) == (0, 4)
    assert again.status == Status.DONE
    assert SamplingCall.objects.count() == 4
    assert set(again.scores) == {"contains", "numeric"}
    assert again.scores["numeric"] == first.scores["numeric"]
    assert again.served["digest"] == first.served["digest"]


def test_of_a_larger_suite_only_what_is_new_is_asked(make_suite: Any, ask: Any) -> None:
    ask(make_suite(ITEMS[:3]))
    larger = ask(make_suite(sampling={"max_tokens": 4, "num_samples": 2}))
    assert (larger.num_known, larger.num_done) == (3, 8)
    assert SamplingCall.objects.count() == 3 + 5


def test_a_cancelled_evaluation_leaves_what_it_has_to_the_next(
    make_suite: Any, ask: Any, alice: Actor, checkpoint: Checkpoint, work: Any
) -> None:
    suite = make_suite()
    cancelled = services.request_evaluation(actor=alice, suite=suite, checkpoint=checkpoint)
    evaluate(cancelled.pk)
    SamplingCall.objects.filter(about__index__gte=2).delete()
    work()
    services.cancel_evaluation(actor=alice, evaluation=cancelled)
    assert ask(suite).num_known == 2


def test_other_weights_other_settings_and_who_wants_it_fresh_are_asked(
    make_suite: Any, ask: Any, alice: Actor, base_model: BaseModel
) -> None:
    suite = make_suite()
    ask(suite)
    assert ask(suite, is_fresh=True).num_known == 0
    assert ask(make_suite(sampling={"max_tokens": 5})).num_known == 0
    base = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    evaluate(base.pk)
    base.refresh_from_db()
    assert base.num_known == 0


def test_an_answer_that_failed_is_not_known(make_suite: Any, ask: Any) -> None:
    suite = make_suite()
    ask(suite).results.update(error="The server was lost.", scores={})
    assert ask(suite).num_known == 0


def test_the_curves_of_the_run_show_its_evaluations(
    make_suite: Any, ask: Any, checkpoint: Checkpoint
) -> None:
    suite = make_suite(name="sums")
    evaluation = ask(suite)
    metric = Metric.objects.get(run=checkpoint.run, key="eval/sums/numeric")
    assert (metric.step, metric.value) == (checkpoint.step, evaluation.scores["numeric"])
    note = Annotation.objects.get(run=checkpoint.run)
    assert (note.kind, note.step) == ("evaluation", checkpoint.step)
    assert note.text.startswith("sums: numeric ")


def test_graders_that_take_their_time_are_a_task_of_their_own(
    make_suite: Any, alice: Actor, checkpoint: Checkpoint, work: Any, sent: list[Any]
) -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 2"
    items = [{"prompt": "Write f.", "tests": tests, "entry_point": "f"}]
    suite = make_suite(items, graders=[{"name": "unit_tests"}])
    evaluation = services.request_evaluation(actor=alice, suite=suite, checkpoint=checkpoint)
    evaluate(evaluation.pk)
    work()
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.num_done) == (Status.RUNNING, 1)
    assert ("evals.grade", evaluation.pk) in sent
    services.settle_abandoned()
    evaluation.refresh_from_db()
    assert evaluation.status == Status.RUNNING
    sent.clear()
    Evaluation.objects.update(started_at=now() - timedelta(minutes=1))
    services.announce_waiting()
    assert sent == [("evals.grade", evaluation.pk)]  # who was at it may have died
    evaluation.results.update(completion="def f(n):\n    return n + 1")
    grade_evaluation(evaluation.pk)
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.scores) == (Status.DONE, {"unit_tests": 1.0})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    tasks: list[Any] = []
    monkeypatch.setattr(services, "send_task", lambda *args: tasks.append(args))
    return tasks


class WorkingWaiter:
    """While somebody waits, the sampler works; the judge then says these words."""

    def __init__(self, work: Callable[[], None], words: str = "") -> None:
        self.work, self.words = work, words

    def wait(self, request_id: str) -> None:
        self.work()
        calls = SamplingCall.objects.filter(purpose="judge", status="done")
        if self.words:
            body = json.dumps({"sequences": [{"text": self.words}]}).encode()
            calls.update(result=body)


def judge_by(model: str) -> dict[str, Any]:
    return {
        "name": "llm_judge",
        "judge": model,
        "rubric": "It is a sum.",
        "max_tokens": 16,
    }


@pytest.fixture
def owned(alice: Actor) -> Actor:
    Membership.objects.get_or_create(
        user=alice.user, project=alice.project, defaults={"role": "owner"}
    )
    return alice


@pytest.fixture
def judged(
    owned: Actor, make_suite: Any, checkpoint: Checkpoint, work: Any
) -> Callable[..., Evaluation]:
    def judged(words: str, **columns: Any) -> Evaluation:
        suite = make_suite(graders=[judge_by(checkpoint.pk)], **columns)
        assert suite.error == ""
        evaluation = services.request_evaluation(actor=owned, suite=suite, checkpoint=checkpoint)
        evaluate(evaluation.pk)
        work()
        grade_rest(evaluation, WorkingWaiter(work, words))
        services.settle(evaluation)
        evaluation.refresh_from_db()
        return evaluation

    return judged


def test_a_judge_is_asked_through_the_serving_path_and_its_words_are_kept(judged: Any) -> None:
    evaluation = judged("It is one.\nScore: 8")
    assert (evaluation.status, evaluation.scores) == (Status.DONE, {"llm_judge": 0.8})
    result = evaluation.results.get(index=0)
    assert result.notes == {"llm_judge": "It is one.\nScore: 8"}
    calls = SamplingCall.objects.filter(purpose="judge")
    assert calls.count() == 4
    assert "It is a sum." in calls[0].payload["messages"][0]["content"]
    judged("It is one.\nScore: 8", name="again")
    assert SamplingCall.objects.filter(purpose="judge").count() == 4  # what is known is not asked


def test_a_judge_that_cannot_be_understood_is_each_answers_error(judged: Any) -> None:
    evaluation = judged("I would rather not say.")
    assert evaluation.status == Status.FAILED
    assert "the judge gave no score from 0 to 10" in evaluation.error


def test_a_small_model_is_a_judge_that_says_something(judged: Any) -> None:
    evaluation = judged("")
    assert "it said '" in evaluation.error or evaluation.scores


def test_a_suite_with_a_judge_that_nobody_serves_is_refused_by_name(
    owned: Actor, make_suite: Any
) -> None:
    suite = make_suite(graders=[judge_by("nobody")])
    assert suite.status == EvalSuite.Status.FAILED
    assert "the judge 'nobody'" in suite.error


def test_a_task_of_reasoning_gym_is_a_suite_by_its_seed(make_suite: Any, ask: Any) -> None:
    spec = {"source": "reasoning_gym", "task": "gcd", "seed": 3, "size": 3}
    graders = [{"name": "reasoning_gym"}]
    suite = make_suite(spec=spec, graders=graders)
    assert (suite.status, suite.num_items) == (EvalSuite.Status.READY, 3)
    assert suite.digest == make_suite(spec=spec, graders=graders).digest
    assert suite.digest != make_suite(spec={**spec, "seed": 4}, graders=graders).digest
    evaluation = ask(suite)
    assert evaluation.status == Status.DONE
    assert 0 <= evaluation.scores["reasoning_gym"] <= 1


@pytest.mark.parametrize(
    ("spec", "graders", "count"),
    [
        ({"source": "built_in", "name": "one_digit_sums"}, [{"name": "numeric"}], 100),
        ({"source": "built_in", "name": "bfcl_simple"}, [{"name": "accepted_call"}], 400),
    ],
)
def test_built_in_suites_are_there(
    make_suite: Any, spec: dict[str, Any], graders: list[Any], count: int
) -> None:
    assert make_suite(spec=spec, graders=graders).num_items == count


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([{"target": "1"}], "Item 1"),
        ([{"prompt": 7}], "Item 1"),
        ([{"messages": [{"role": "assistant", "content": "x"}]}], "Item 1"),
        ([{"prompt": "?", "target": "five"}], "Row 1, grader numeric"),
    ],
)
def test_an_item_that_is_none_is_named(make_suite: Any, items: list[Any], why: str) -> None:
    assert why in make_suite(items).error


def test_a_suite_is_built_once_whoever_asks(make_suite: Any) -> None:
    suite = make_suite()
    build_suite(suite.pk)
    digest = suite.digest
    suite.refresh_from_db()
    assert suite.spec == {"source": "items"}  # which are kept once
    assert suite.digest == digest


def test_a_run_of_somebody_elses_checkpoint_is_not_drawn_on(
    make_suite: Any, alice: Actor, checkpoint: Checkpoint, base_model: BaseModel, work: Any
) -> None:
    other = Run.objects.create(
        project=alice.project, name="other", origin="rest", base_model=base_model, rank=8
    )
    evaluation = services.request_evaluation(
        actor=alice, suite=make_suite(), checkpoint=checkpoint, run=other
    )
    evaluate(evaluation.pk)
    work()
    assert not Metric.objects.filter(key__startswith="eval/").exists()


def test_the_weights_that_judged_are_kept_with_each_score_and_with_the_evaluation(
    judged: Any, checkpoint: Checkpoint
) -> None:
    evaluation = judged("It is one.\nScore: 8")
    kept = {"llm_judge": checkpoint.digest}
    assert [each.judges for each in evaluation.results.all()] == [kept] * 4
    assert evaluation.served["judges"] == {"llm_judge": [checkpoint.digest]}
    again = services.request_evaluation(
        actor=evaluation_owner(evaluation), suite=evaluation.suite, checkpoint=checkpoint
    )
    evaluate(again.pk)
    again.refresh_from_db()
    assert (again.num_known, again.served["judges"]) == (4, evaluation.served["judges"])


def evaluation_owner(evaluation: Evaluation) -> Actor:
    return Actor(user=evaluation.project.members.get(), project=evaluation.project, role=Role.OWNER)
