"""Pages of suites and evaluations, and the page that compares two."""

from collections.abc import Sequence

import pytest
from django.test import Client

from tests.webapp.cast import count_queries, make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.diffs import MAX_PIECES, diff_texts
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run

Status = Evaluation.Status
ITEMS = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"What is {n}+{n}?"},
        ],
        "target": f"target {n}",
        "row": n,
    }
    for n in range(4)
]
FORM = {
    "name": "held out",
    "held_out_share": "0.1",
    "seed": "0",
    "limit": "100",
    "grader-0-name": "exact_match",
    "num_samples": "1",
    "max_tokens": "64",
    "temperature": "0",
    "sampling_seed": "0",
}


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    dataset = Dataset.objects.create(project=alice.project, name="sums")
    return DatasetVersion.objects.create(
        project=alice.project,
        dataset=dataset,
        number=1,
        filename="rows.jsonl",
        status=DatasetVersion.Status.READY,
        num_rows=40,
    )


@pytest.fixture
def checkpoint(alice: Actor, version: DatasetVersion) -> Checkpoint:
    base_model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    run = Run.objects.create(
        project=alice.project,
        name="first",
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=8,
        dataset_version=version,
    )
    return make_checkpoint(run)


@pytest.fixture
def suite(alice: Actor, version: DatasetVersion) -> EvalSuite:
    return EvalSuite.objects.create(
        project=alice.project,
        name="held out",
        status=EvalSuite.Status.READY,
        dataset_version=version,
        selection={"held_out_share": 0.1, "seed": 0, "limit": 100},
        graders=[{"name": "exact_match"}, {"name": "contains"}],
        sampling={"max_tokens": 64, "temperature": 0.0, "seed": 0},
        items=ITEMS,
        num_items=4,
        digest="5u17e" * 12,
    )


def evaluate(
    suite: EvalSuite,
    base_model: BaseModel,
    checkpoint: Checkpoint | None,
    scores: Sequence[float],
) -> Evaluation:
    """Done, with an answer for each score."""
    evaluation = Evaluation.objects.create(
        project=suite.project,
        suite=suite,
        base_model=base_model,
        checkpoint=checkpoint,
        status=Status.DONE,
        num_done=len(scores),
        served={"sampling": suite.sampling, "digest": checkpoint.digest if checkpoint else ""},
        scores={"exact_match": sum(scores) / len(scores), "contains": 1.0},
    )
    for index, score in enumerate(scores):
        EvalResult.objects.create(
            evaluation=evaluation,
            index=index,
            completion=f"target {index}" if score else f"mistake {index}",
            scores={"exact_match": score, "contains": 1.0},
        )
    return evaluation


def read(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return response.content.decode()


@pytest.mark.usefixtures("version")
def test_an_empty_list_leads_to_a_first_suite(browser: Client) -> None:
    page = read(browser, "/evals/")
    assert "No suites yet" in page
    assert 'href="/evals/suites/new/"' in page


def test_without_a_dataset_the_list_leads_to_an_upload(browser: Client) -> None:
    assert 'href="/datasets/new/"' in read(browser, "/evals/")


def test_the_list_takes_the_same_queries_for_one_suite_and_for_five(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    once = count_queries(browser, "/evals/")
    for number in range(4):
        suite.pk, suite.name = f"suite-{number}", f"more {number}"
        suite.save(force_insert=True)
        evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
        evaluate(suite, checkpoint.base_model, None, [1, 0, 0, 0])
    assert count_queries(browser, "/evals/") == once


def test_a_suite_freezes_its_graders_and_its_sampling(
    browser: Client, version: DatasetVersion
) -> None:
    answer = browser.post(
        "/evals/suites/new/",
        FORM
        | {
            "dataset_version": version.pk,
            "grader-0-name": "regex",
            "grader-0-pattern": r"\d+",
            "grader-0-ignore_case": "on",
            "grader-7-name": "contains",
            "grader-7-ignore_case": "on",
            "limit": "",
        },
    )
    made = EvalSuite.objects.get()
    assert answer.headers["Location"] == f"/evals/suites/{made.pk}/"
    assert made.graders == [
        {"name": "regex", "ignore_case": True, "pattern": r"\d+"},
        {"name": "contains", "ignore_case": True},
    ]
    assert made.selection == {"held_out_share": 0.1, "seed": 0, "limit": None}
    assert made.sampling == {"max_tokens": 64, "temperature": 0.0, "seed": 0}
    assert "a worker is making them" in read(browser, answer.headers["Location"])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", "", "A suite needs a name."),
        ("dataset_version", "dsv-nothing", "Select a valid choice"),
        ("held_out_share", "1.5", "held_out_share is 1.5; it lies above 0 and up to 1"),
        ("limit", "0", "limit is 0; it lies between 1 and"),
        ("max_tokens", "0", "max_tokens is 0"),
        ("temperature", "-1", "temperature is -1.0"),
        ("pass_at", "1, two", "Give whole numbers with commas between"),
        ("num_samples", "65", "num_samples is 65: give a whole number from 1 to 64"),
        ("grader-0-name", "vibes", "Select a valid choice"),
    ],
)
def test_what_is_wrong_with_a_suite_stands_beside_its_field(
    browser: Client, version: DatasetVersion, field: str, value: str, complaint: str
) -> None:
    data = FORM | {"dataset_version": version.pk} | {field: value}
    answer = browser.post("/evals/suites/new/", data)
    assert answer.status_code == 400
    page = answer.content.decode()
    assert complaint in page
    assert f'id="id_{field}-error"' in page
    assert not EvalSuite.objects.exists()


@pytest.mark.parametrize(
    ("grader", "complaint"),
    [
        ({"grader-0-name": "regex", "grader-0-pattern": "("}, "is not a regular expression"),
        ({"grader-0-name": "llm_judge", "grader-0-rubric": "Good?"}, "This field is required"),
        ({"grader-0-name": "json_schema", "grader-0-schema": "{"}, "Enter a valid JSON"),
        (
            {"grader-0-name": "unit_tests", "grader-0-seconds": "900"},
            "unit_tests: seconds is 900.0",
        ),
        ({}, "A suite needs a grader"),
    ],
)
def test_what_is_wrong_with_a_grader_is_said(
    browser: Client, version: DatasetVersion, grader: dict[str, str], complaint: str
) -> None:
    without = {key: value for key, value in FORM.items() if not key.startswith("grader")}
    answer = browser.post("/evals/suites/new/", without | {"dataset_version": version.pk} | grader)
    assert answer.status_code == 400
    assert complaint in answer.content.decode()


def test_tasks_by_seed_are_a_suite_with_several_samples(browser: Client) -> None:
    page = read(browser, "/evals/suites/new/?source=reasoning_gym")
    assert 'value="reasoning_gym" selected' in page
    data = FORM | {
        "grader-0-name": "reasoning_gym",
        "task": "gcd",
        "size": "20",
        "task_seed": "3",
        "config": '{"max_value": 9}',
        "num_samples": "4",
        "pass_at": "1, 4",
        "temperature": "1",
    }
    answer = browser.post("/evals/suites/new/?source=reasoning_gym", data)
    made = EvalSuite.objects.get()
    assert made.spec == {
        "source": "reasoning_gym",
        "task": "gcd",
        "size": 20,
        "seed": 3,
        "config": {"max_value": 9},
    }
    assert made.sampling["pass_at"] == [1, 4]
    page = read(browser, answer.headers["Location"])
    assert "reasoning-gym: gcd, seed 3" in page
    assert "pass@k for k = 1, 4" in page
    assert "reasoning-gym: gcd, seed 3" in read(browser, "/evals/")


def test_a_built_in_suite_is_two_choices(browser: Client) -> None:
    data = FORM | {"grader-0-name": "numeric", "built_in": "one_digit_sums"}
    assert browser.post("/evals/suites/new/?source=built_in", data).status_code == 302
    assert EvalSuite.objects.get().spec == {"source": "built_in", "name": "one_digit_sums"}


def test_a_grader_that_is_chosen_shows_its_own_settings_and_keeps_what_was_typed(
    browser: Client,
) -> None:
    row = read(browser, "/evals/suites/new/grader/")
    assert 'value="contains" selected' in row
    query = {"grader-5-name": "unit_tests", "grader-5-column": "checks"}
    row = browser.get("/evals/suites/new/grader/", query).content.decode()
    assert 'name="grader-5-memory_mib"' in row
    assert 'value="checks"' in row
    assert "never sees its tests" in row
    assert browser.get("/evals/suites/new/no-grader/").content == b""


def test_an_evaluation_says_what_was_known_what_graders_said_and_how_they_ran(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    evaluation.num_known = 3
    evaluation.served |= {"sandbox": "HONE_SANDBOX=limits"}
    evaluation.scores |= {"exact_match/pass@4": 0.5}
    evaluation.save()
    evaluation.results.filter(index=1).update(notes={"exact_match": "Not quite."})
    page = read(browser, f"/evals/{evaluation.pk}/")
    assert "Of 4 answers 3 were known" in page
    assert "to be graded" not in page
    assert "Not quite." in page
    assert "with limits on time and memory alone" in page
    assert "pass@4" in page


def test_answers_that_wait_for_their_graders_are_not_called_wrong(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    evaluation.results.filter(index__gt=1).update(scores={})
    Evaluation.objects.filter(pk=evaluation.pk).update(status=Status.RUNNING)
    page = read(browser, f"/evals/{evaluation.pk}/")
    assert "2 of them wait for their graders" in page
    assert page.count("to be graded") == 2


def test_a_suites_page_shows_items_and_scores_of_all_graders(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluate(suite, checkpoint.base_model, None, [0, 0, 0, 1])
    page = read(browser, f"/evals/suites/{suite.pk}/")
    assert "What is 3+3?" in page
    assert "target 3" in page
    assert "25 %" in page
    assert "100 %" in page
    assert "Compare the chosen" not in page
    evaluate(suite, checkpoint.base_model, checkpoint, [1, 1, 0, 1])
    assert "Compare the chosen" in read(browser, f"/evals/suites/{suite.pk}/")


def test_a_suites_page_takes_the_same_queries_for_one_evaluation_and_for_five(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    url = f"/evals/suites/{suite.pk}/"
    evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    once = count_queries(browser, url)
    for _ in range(4):
        evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    assert count_queries(browser, url) == once


def test_base_and_checkpoint_are_evaluated_from_the_suites_page(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    base = checkpoint.base_model_id
    data = {"suite": suite.pk, "target": checkpoint.pk}
    first = browser.post("/evals/new/", data)
    browser.post("/evals/new/", data | {"base": base})
    newest, oldest = Evaluation.objects.all()
    assert first.headers["Location"] == f"/evals/{oldest.pk}/"
    assert (oldest.checkpoint, newest.checkpoint) == (checkpoint, None)
    page = read(browser, f"/evals/{oldest.pk}/")
    assert "0 of 4 answered; it waits for a worker." in page
    assert "every 3s" in page


def test_a_link_with_a_checkpoint_chooses_it(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    page = read(browser, f"/evals/new/?checkpoint={checkpoint.pk}")
    assert f'value="{checkpoint.pk}" selected' in page
    assert suite.name in page
    assert browser.post("/evals/new/", {"suite": suite.pk}).status_code == 400


def test_an_evaluation_shows_each_answer_and_filters_right_from_wrong(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 1, 1])
    url = f"/evals/{evaluation.pk}/"
    page = read(browser, url)
    assert "75 %" in page
    assert "mistake 1" in page
    assert "1 earlier message" in page
    assert checkpoint.digest in page
    wrong, right = read(browser, f"{url}?show=wrong"), read(browser, f"{url}?show=right")
    assert ("mistake 1" in wrong, "What is 2+2?" in wrong) == (True, False)
    assert ("mistake 1" in right, "What is 2+2?" in right) == (False, True)
    assert "mistake 1" in read(browser, f"{url}?show=right&grader=contains")
    assert "No sample is like that" in read(browser, f"{url}?show=unanswered")


def test_an_unknown_grader_in_the_address_is_the_score(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 1, 1])
    url = f"/evals/{evaluation.pk}/?show=wrong&grader=index__password"
    assert "mistake 1" in read(browser, url)


def test_the_page_of_a_running_evaluation_is_loaded_again_once_it_has_ended(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 1, 1])
    url = f"/evals/{evaluation.pk}/"
    Evaluation.objects.update(status=Status.RUNNING)
    assert "HX-Refresh" not in browser.get(url, headers={"HX-Request": "true"}).headers
    Evaluation.objects.update(status=Status.DONE)
    assert browser.get(url, headers={"HX-Request": "true"}).headers["HX-Refresh"] == "true"
    assert "HX-Refresh" not in browser.get(url).headers


def test_a_running_evaluation_can_be_cancelled(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    browser.post("/evals/new/", {"suite": suite.pk, "target": checkpoint.pk})
    evaluation = Evaluation.objects.get()
    browser.post(f"/evals/{evaluation.pk}/cancel/")
    evaluation.refresh_from_db()
    assert evaluation.status == Status.CANCELLED
    assert "every 3s" not in read(browser, f"/evals/{evaluation.pk}/")


def test_a_comparison_begins_with_its_verdict_and_shows_regressions_first(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    base = evaluate(suite, checkpoint.base_model, None, [0, 0, 0, 1])
    tuned = evaluate(suite, checkpoint.base_model, checkpoint, [1, 1, 0, 0])
    page = read(browser, f"/evals/compare/?a={base.pk}&b={tuned.pk}")
    verdict, regression = page.index("better on 2, worse on 1"), page.index("What is 3+3?")
    assert verdict < regression < page.index("What is 0+0?")
    assert "What is 2+2?" not in page  # both are wrong: no flip
    assert "<mark>mistake</mark>" in page
    assert "not: the base model as it is" in page
    everything = read(browser, f"/evals/compare/?a={base.pk}&b={tuned.pk}&show=all")
    assert "What is 2+2?" in everything


def test_without_a_choice_the_comparison_offers_what_is_done(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    assert "Nothing to compare yet" in read(browser, "/evals/compare/")
    base = evaluate(suite, checkpoint.base_model, None, [0, 0, 0, 1])
    page = read(browser, "/evals/compare/")
    assert 'aria-label="Compare chat"' in page
    assert "25 %" in page
    assert "Tick the evaluations" not in page
    assert "Tick the evaluations" in read(browser, f"/evals/compare/?baseline={base.pk}")


def test_evaluations_of_two_suites_are_not_compared(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    first = evaluate(suite, checkpoint.base_model, None, [1, 1, 1, 1])
    suite.pk, suite.name = "suite-2", "another"
    suite.save(force_insert=True)
    second = evaluate(suite, checkpoint.base_model, None, [1, 1, 1, 1])
    page = read(browser, f"/evals/compare/?a={first.pk}&b={second.pk}")
    assert "Only evaluations of one suite can be compared" in page


def test_another_projects_suites_and_evaluations_do_not_exist(
    suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 1, 1])
    stranger = sign_in(make_actor("charlie"))
    urls = [
        f"/evals/suites/{suite.pk}/",
        f"/evals/{evaluation.pk}/",
        f"/evals/compare/?a={evaluation.pk}&b={evaluation.pk}",
    ]
    assert [stranger.get(url).status_code for url in urls] == [404] * 3
    assert stranger.post(f"/evals/{evaluation.pk}/cancel/").status_code == 404
    data = {"suite": suite.pk, "target": checkpoint.pk}
    assert stranger.post("/evals/new/", data).status_code == 400
    assert Evaluation.objects.count() == 1


def test_a_viewer_makes_nothing_and_cancels_nothing(
    alice: Actor, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 1, 1])
    viewer = sign_in(make_viewer(alice))
    assert "mistake 1" in read(viewer, f"/evals/{evaluation.pk}/")
    assert 'name="target"' not in read(viewer, f"/evals/suites/{suite.pk}/")
    for path in ("suites/new/", "new/", f"{evaluation.pk}/cancel/"):
        assert "viewer" in viewer.post(f"/evals/{path}").content.decode()
    assert (EvalSuite.objects.count(), Evaluation.objects.count()) == (1, 1)


def test_only_what_differs_between_two_texts_is_marked() -> None:
    first, second = diff_texts("the sum is 42.", "the sum is about 43.")
    assert [(each.text, each.is_changed) for each in first] == [
        ("the sum is ", False),
        ("42", True),
        (".", False),
    ]
    assert "".join(each.text for each in second) == "the sum is about 43."
    assert [each.text for each in second if each.is_changed] == ["about 43"]


def test_texts_with_nothing_in_common_are_one_mark_each() -> None:
    first, second = diff_texts("one two three", "uno due tre")
    assert [(each.text, each.is_changed) for each in first] == [("one two three", True)]
    assert [(each.text, each.is_changed) for each in second] == [("uno due tre", True)]


def test_texts_too_long_to_compare_by_word_are_compared_as_wholes() -> None:
    long = "a " * MAX_PIECES
    first, second = diff_texts(long, long + "b")
    assert ([each.is_changed for each in first], len(second)) == ([True], 1)
    assert [each.is_changed for each in diff_texts(long, long)[0]] == [False]


@pytest.mark.parametrize(
    "typed", ["[" * 100_000, "1" * 5000, '{"minimum": NaN}', '{"title": "\\ud800"}']
)
def test_a_schema_that_no_database_stores_is_refused_beside_its_field(
    browser: Client, version: DatasetVersion, typed: str
) -> None:
    grader = {"grader-0-name": "json_schema", "grader-0-schema": typed}
    answer = browser.post("/evals/suites/new/", {**FORM, "dataset_version": version.pk, **grader})
    assert answer.status_code == 400
    assert "Enter a valid JSON." in answer.content.decode()
    assert not EvalSuite.objects.exists()


def test_a_suite_that_says_nothing_of_sampling_has_its_pages(
    browser: Client, suite: EvalSuite, checkpoint: Checkpoint
) -> None:
    EvalSuite.objects.update(sampling={}, kind=EvalSuite.Kind.LM_EVAL)
    suite.refresh_from_db()
    evaluation = evaluate(suite, checkpoint.base_model, checkpoint, [1, 0, 0, 0])
    for url in (f"/evals/suites/{suite.pk}/", f"/evals/{evaluation.pk}/"):
        assert "as its task says" in read(browser, url)
