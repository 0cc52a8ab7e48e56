"""Several evaluations on one page: verdict, flips, slices, whole answers and exports."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import count_queries, make_actor, sign_in
from tests.webapp.deployments.conftest import make_checkpoint, read
from tests.webapp.evals.cast import (
    find_model,
    make_evaluation,
    make_item,
    make_suite,
    make_trained,
    make_version,
)
from webapp.accounts.models import Actor
from webapp.core.long_diffs import diff_long, split_words
from webapp.deployments.models import SamplingCall
from webapp.evals import exports
from webapp.evals.comparison import Comparison, compare_all, sum_up
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.evals.relations import describe_relation
from webapp.evals.slices import cut_comparisons, describe_target, list_facets


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    """Twelve items; every other one is hard, and the last four have long prompts."""
    items = [
        make_item(n, columns={"level": "hard" if n % 2 else "easy"}) | {"target": "yes"}
        for n in range(12)
    ]
    for item in items[8:]:
        item["messages"] = [{"role": "user", "content": "long " * 100}]
    return make_suite(alice, 12, name="held out", items=items)


@pytest.fixture
def three(alice: Actor, suite: EvalSuite) -> list[Evaluation]:
    """The base, one that is better on ten, one that is worse on one and better on two."""
    return [
        make_evaluation(suite, [0] * 10 + [1, 1]),
        make_evaluation(suite, [1] * 12, checkpoint=make_trained(alice, "good", 40)),
        make_evaluation(suite, [1, 1] + [0] * 9 + [1], checkpoint=make_trained(alice, "odd", 20)),
    ]


def address(evaluations: list[Evaluation], path: str = "", **query: str) -> str:
    ids = ",".join(each.pk for each in evaluations)
    more = "".join(f"&{name}={value}" for name, value in query.items())
    return f"/evals/compare/{path}?evaluations={ids}{more}"


def compare_three(three: list[Evaluation]) -> list[Comparison]:
    return compare_all(three[0], three[1:])


def test_several_are_told_in_one_sentence_with_adjusted_p_values(three: list[Evaluation]) -> None:
    found = compare_three(three)
    assert [(each.wins, each.losses, each.ties) for each in found] == [(10, 0, 2), (2, 1, 9)]
    # McNemar: 2 / 2^10 and 2 (1 + 3) / 2^3 = 1; by Holm over two, twice the first.
    assert [each.p_value for each in found] == [pytest.approx(2 / 1024), 1.0]
    assert [each.adjusted for each in found] == [pytest.approx(4 / 1024), 1.0]
    assert sum_up(found) == (
        "Against model: good, step 40 is better (+83.3 points); odd, step 20 cannot be"
        " told from it."
    )
    assert "p = 0.002, p = 0.0039 among 2" in found[0].verdict


def test_the_page_begins_with_the_verdict_and_shows_regressions_first(
    browser: Client, three: list[Evaluation]
) -> None:
    page = read(browser, address(three))
    verdict = page.index("good, step 40 is better (+83.3 points)")
    assert verdict < page.index("What is number 0?")
    flips = page[page.index("<h2>Items</h2>") :]
    assert flips.index("item=10") < flips.index("item=0") < flips.index("item=2")
    assert "item=11" not in flips  # the same with all three
    assert "0.0039" in page


def test_another_baseline_turns_the_comparison_round(
    browser: Client, three: list[Evaluation]
) -> None:
    page = read(browser, address(three, baseline=three[1].pk))
    assert (
        "Against good, step 40: odd, step 20 (-75.0 points) and model (-83.3 points) are worse."
    ) in page


def test_old_addresses_of_two_go_on_working(browser: Client, three: list[Evaluation]) -> None:
    page = read(browser, f"/evals/compare/?a={three[0].pk}&b={three[1].pk}")
    assert "good, step 40 is better on 10, worse on 0 of 12" in page


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_and_too_many_are_refused_in_a_sentence(
    browser: Client, suite: EvalSuite, count: int
) -> None:
    evaluations = [make_evaluation(suite, [1] * 12) for _ in range(count)]
    assert f"Choose 2 to 8 evaluations to compare; these are {count}." in read(
        browser, address(evaluations)
    )


def test_odd_addresses_are_answered(browser: Client, three: list[Evaluation]) -> None:
    assert "no grader vibes" in read(browser, address(three, grader="vibes"))
    assert "Changed" in read(browser, address(three, show="nonsense", slice="%00", page="x"))
    assert browser.get(address(three) + ",eval-none").status_code == 404
    assert browser.get(address(three, baseline="eval-none")).status_code == 404
    for item in ("", "x", "-1", "99", "9" * 30):
        assert browser.get(address(three, "answers/", item=item)).status_code in (400, 404)
    assert browser.get("/evals/compare/csv/").status_code == 400
    assert browser.get("/evals/compare/html/?evaluations=,,").status_code == 400


def test_a_stranger_finds_nothing(three: list[Evaluation]) -> None:
    stranger = sign_in(make_actor("charlie"))
    for path in ("", "csv/", "html/", "answers/"):
        assert stranger.get(address(three, path, item="0")).status_code == 404


def test_the_page_takes_the_same_queries_for_few_flips_and_for_many(
    browser: Client, suite: EvalSuite
) -> None:
    base = make_evaluation(suite, [0] * 12)
    few = make_evaluation(suite, [1] + [0] * 11)
    many = make_evaluation(suite, [1] * 12)
    count_queries(browser, address([base, few]))
    assert count_queries(browser, address([base, few])) == count_queries(
        browser, address([base, many])
    )


def test_an_item_counts_once_by_the_mean_of_its_samples(alice: Actor) -> None:
    suite = make_suite(alice, 3)
    before = make_evaluation(suite, [[0, 0], [1, 0], [0, 1]])
    after = make_evaluation(suite, [[1, 1], [1, 1], [1, 0]])
    (found,) = compare_all(before, [after])
    assert [sample.first_score for sample in found.samples] == [0, 0.5, 0.5]
    assert (found.wins, found.losses, found.ties) == (2, 0, 1)
    assert found.difference == pytest.approx(50)
    # The signs of 1 and 0.5 in every way: 1.5 and -1.5 of four are as far from 0.
    assert found.p_value == 0.5
    assert found.test == "a paired permutation test"


def test_a_failed_sample_counts_neither_way_and_an_item_without_any_is_left_out(
    browser: Client, alice: Actor
) -> None:
    suite = make_suite(alice, 3)
    before = make_evaluation(suite, [[1, 0], [0, 0], [1, 1]])
    after = make_evaluation(suite, [[1, 1], [1, 1], [1, 1]])
    EvalResult.objects.filter(evaluation=after, index=0, sample=1).update(error="cut", scores={})
    EvalResult.objects.filter(evaluation=after, index=1).update(error="cut", scores={})
    (found,) = compare_all(before, [after])
    assert [(each.index, each.first_score, each.second_score) for each in found.samples] == [
        (0, 0.5, 1),
        (2, 1, 1),
    ]
    assert found.num_left_out == 1
    assert "Up to 1 items are left out" in read(browser, address([before, after]))


def test_items_are_cut_by_columns_lengths_and_kinds_of_target(three: list[Evaluation]) -> None:
    items = three[0].suite.items
    assert list_facets(items) == ["prompt length", "column level"]
    cut = cut_comparisons(compare_three(three), "column level")
    assert [(each.name, each.num_items) for each in cut.slices] == [("easy", 6), ("hard", 6)]
    easy, hard = (each.parts[0] for each in cut.slices)
    assert easy is not None
    assert hard is not None
    assert (easy.wins, easy.losses, hard.wins, hard.losses) == (5, 0, 5, 0)
    # McNemar of 5 and 0: 2 / 2^5; the other two have p 1, and four tests make it four times.
    assert (easy.p_value, easy.adjusted) == (0.0625, 0.25)
    assert cut.family == 4
    assert not easy.is_significant


def test_slices_of_the_page_are_those_of_the_address(
    browser: Client, three: list[Evaluation]
) -> None:
    page = read(browser, address(three, slice="column level"))
    assert "adjusted by Holm over the 4 tests" in page
    assert "500 characters" in read(browser, address(three, slice="prompt length"))


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("", "none"), (" 12,000.5 ", "a number"), ("-3 %", "a number"), ('{"a": 1}', "JSON"),
        ("[not", "one word"), ("Paris", "one word"), ("It is Paris.", "a short text"),
        ("one\ntwo", "a long text"),
    ],
)  # fmt: skip
def test_targets_are_told_apart_by_kind(target: str, kind: str) -> None:
    assert describe_target(target) == kind


def test_numbers_of_a_column_are_cut_into_ranges_of_about_as_many_items(alice: Actor) -> None:
    items = [make_item(n, metadata={"size": n * 1.5, "odd": n % 2 == 1}) for n in range(40)]
    suite = make_suite(alice, 40, items=items)
    found = compare_all(make_evaluation(suite, [0] * 40), [make_evaluation(suite, [1] * 40)])
    cut = cut_comparisons(found, "column size")
    assert [(each.name, each.num_items) for each in cut.slices] == [
        ("0 to 13.5", 10), ("15 to 28.5", 10), ("30 to 43.5", 10), ("45 to 58.5", 10),
    ]  # fmt: skip
    assert [each.name for each in cut_comparisons(found, "column odd").slices] == ["false", "true"]


def test_the_page_names_both_tests_where_both_were_made(browser: Client, alice: Actor) -> None:
    suite = make_suite(alice, 4)
    whole, parts = make_evaluation(suite, [0, 1, 1, 1]), make_evaluation(suite, [0, 0.5, 1, 1])
    base = make_evaluation(suite, [0, 0, 0, 1])
    both = " ".join(read(browser, address([base, whole, parts])).split())
    exact, drawn = "McNemar&#x27;s exact test", "a paired permutation test"
    assert f"{exact} where all scores are 0 or 1" in both
    assert f"by {drawn} (" in both
    assert "where some are parts of a point" in both
    one = read(browser, address([base, whole]))
    assert f"by {exact}. The interval is Newcombe's for paired shares, at 95 %" in one
    assert drawn not in one


def test_slices_that_take_too_long_are_left_out_of_the_file_and_named(
    browser: Client, three: list[Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Nothing is cut here" not in read(browser, address(three, "html/"))
    monkeypatch.setattr(exports, "SECONDS", -1.0)
    page = read(browser, address(three, "html/"))
    assert "Nothing is cut here by prompt length, column level, for lack of time" in page
    assert "By prompt length" not in page


def test_a_column_of_endless_numbers_tells_nothing_and_breaks_nothing(
    browser: Client, alice: Actor
) -> None:
    items = [make_item(n, metadata={"id": 10**400 + n}) for n in range(40)]
    suite = make_suite(alice, 40, items=items)
    found = [make_evaluation(suite, [0] * 40), make_evaluation(suite, [1] * 40)]
    assert "column id" not in read(browser, address(found))


def test_a_target_of_a_million_digits_is_told_at_once() -> None:
    assert describe_target("1" * 1_000_000 + "x") == "one word"


def test_an_answer_that_a_spreadsheet_would_run_is_text_in_the_csv(
    browser: Client, suite: EvalSuite
) -> None:
    before = make_evaluation(suite, [0] * 12, texts={0: '=HYPERLINK("http://x")', 1: "-5"})
    after = make_evaluation(suite, [1] * 12, texts={0: "@SUM(A1)", 1: "-1,200.5 %"})
    answer = browser.get(address([before, after], "csv/"))
    rows = csv.DictReader(io.StringIO(answer.getvalue().decode()))
    answers = [row["answer"] for row in rows]
    assert answers[:3] == ['\'=HYPERLINK("http://x")', "'@SUM(A1)", "-5"]


def test_answers_of_twenty_thousand_letters_are_compared_to_their_end(
    browser: Client, suite: EvalSuite
) -> None:
    long = " ".join(f"word{n}" for n in range(2200))  # 20,889 letters, no line break
    before = make_evaluation(suite, [0] * 12, texts={3: f"{long} Paris."})
    after = make_evaluation(suite, [1] * 12, texts={3: f"{long} Rome."})
    page = read(browser, address([before, after], "answers/", item="3"))
    assert "word2199" in page
    assert "<mark>Paris</mark>" in page
    assert "<mark>Rome</mark>" in page
    assert "by word" in page
    assert "too long" not in page


def test_lines_that_both_have_fold_away_and_stay_on_the_page(
    browser: Client, suite: EvalSuite
) -> None:
    lines = "".join(f"line {n}\n" for n in range(30))
    before = make_evaluation(suite, [0] * 12, texts={0: f"{lines}the end"})
    after = make_evaluation(suite, [1] * 12, texts={0: f"{lines}another end"})
    page = read(browser, address([before, after], "answers/", item="0"))
    assert "30 lines that both have" in page
    assert "line 29" in page
    assert "<mark>the </mark>" in page


def test_answers_that_cannot_be_compared_in_time_are_marked_between_their_equal_ends() -> None:
    before = "begin " + "a b " * 5000 + "c end"
    after = "begin " + "b a " * 5000 + "d end"
    diff = diff_long(split_words(before), split_words(after))
    assert diff.num_coarse == 1
    first, *_, last = diff.stretches[0].first
    assert (first.text, first.is_changed) == ("begin ", False)
    assert (last.text, last.is_changed) == ("end", False)
    assert "".join(piece.text for piece in diff.stretches[0].second) == after


def test_a_comparison_without_time_says_so_and_loses_no_letter() -> None:
    before, after = "one two\nthree\n", "one 2\nthree\nfour"
    diff = diff_long(split_words(before), split_words(after), seconds=-1)
    assert diff.num_coarse == 1
    assert "".join(piece.text for each in diff.stretches for piece in each.first) == before


def test_answers_are_compared_by_the_models_own_tokens_while_they_are_known(
    browser: Client, suite: EvalSuite
) -> None:
    evaluations = [
        make_evaluation(suite, [score] * 12, texts={0: text})
        for score, text in ((0, "unhappy"), (1, "unlucky"))
    ]
    for evaluation, pieces in zip(evaluations, (["un", "happy"], ["un", "lucky"]), strict=True):
        keep_call(evaluation, [*pieces, "<|im_end|>"])
    page = read(browser, address(evaluations, "answers/", item="0"))
    assert "by token" in page
    assert "un<mark>happy</mark>" in page
    assert "un<mark>lucky</mark>" in page


def keep_call(evaluation: Evaluation, pieces: list[str]) -> None:
    body = f'{{"sequences": [{{"pieces": {pieces!r}}}]}}'.replace("'", '"')
    SamplingCall.objects.create(
        project=evaluation.project,
        purpose=SamplingCall.Purpose.EVALUATION,
        base_model=evaluation.base_model,
        payload={},
        digest="",
        status=SamplingCall.Status.DONE,
        result=body.encode(),
        about={"evaluation": evaluation.pk, "index": 0},
    )


def test_each_sample_of_an_item_can_be_read(browser: Client, alice: Actor) -> None:
    suite = make_suite(alice, 2)
    before, after = make_evaluation(suite, [[0, 0], [1, 0]]), make_evaluation(suite, [[1, 1], [1]])
    EvalResult.objects.filter(evaluation=before, index=0, sample=1).update(completion="second try")
    page = read(browser, address([before, after], "answers/", item="0"))
    assert "second try" not in page
    second = read(browser, address([before, after], "answers/", item="0", x="1"))
    assert "second try" in second
    assert "<strong>2</strong>" in second  # as the evaluation's page counts them


def test_the_csv_has_a_line_for_every_answer(browser: Client, three: list[Evaluation]) -> None:
    EvalResult.objects.filter(evaluation=three[2], index=0).update(error="cut, late", scores={})
    response = browser.get(address(three, "csv/"))
    text = b"".join(response.streaming_content).decode()  # type: ignore[attr-defined]
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 36
    assert [line["letter"] for line in lines[:3]] == ["A", "B", "C"]
    assert [line["change"] for line in lines[:3]] == ["", "better", ""]
    assert lines[2]["error"] == "cut, late"
    assert (lines[1]["item_score"], lines[1]["answer"]) == ("1.0", "model 0")


class Outside(HTMLParser):
    """Whatever a file would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset")]
        self.found += [tag] * (tag in ("script", "link", "iframe", "img", "object"))


def test_the_html_file_holds_everything_and_fetches_nothing(
    browser: Client, three: list[Evaluation]
) -> None:
    EvalResult.objects.filter(evaluation=three[0], index=0).update(completion="<b>bold</b> no")
    response = browser.get(address(three, "html/"))
    page = response.content.decode()
    reader = Outside()
    reader.feed(page)
    assert reader.found == []
    assert "url(" not in page
    assert "attachment" in response.headers["Content-Disposition"]
    for part in (
        "good, step 40 is better on 10, worse on 0 of 12", "&lt;b&gt;", "<mark>", "long long",
        three[0].suite.digest, three[1].pk, "By column level", "McNemar", "exact_match",
    ):  # fmt: skip
        assert part in page


def test_the_html_file_says_how_many_flips_it_leaves_out(
    browser: Client, three: list[Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MOST_BYTES", 580)
    page = browser.get(address(three, "html/")).content.decode()
    assert "2 of 11 stand here: the file holds up to 580 B" in page


def test_checkpoints_of_one_run_are_told_by_their_steps(alice: Actor, suite: EvalSuite) -> None:
    early, late = make_trained(alice, "long", 10), make_trained(alice, "long", 250)
    pair = [make_evaluation(suite, [1] * 12, checkpoint=each) for each in (early, late)]
    assert describe_relation(*pair) == ["One run, long: the second is 240 steps further."]
    assert describe_relation(*pair[::-1]) == ["One run, long: the second is 240 steps earlier."]
    base = make_evaluation(suite, [1] * 12)
    assert describe_relation(base, pair[0]) == [
        "long, step 10 was trained from model; its last run made 10 steps."
    ]


def test_a_branch_is_told_by_where_it_began(alice: Actor, suite: EvalSuite) -> None:
    early, late = make_trained(alice, "first", 10), make_trained(alice, "first", 40)
    heir = make_trained(alice, "second", 5, run_columns={"parent": late})
    twin = make_trained(alice, "third", 7, run_columns={"parent": early})
    of = {
        each.pk: make_evaluation(suite, [1] * 12, checkpoint=each)
        for each in (early, late, heir, twin)
    }
    assert describe_relation(of[early.pk], of[heir.pk]) == [
        "The second comes from the first: the run second began from first, step 40 30 steps after"
        " it, and made 5 steps since."
    ]
    assert describe_relation(of[heir.pk], of[twin.pk]) == [
        "Both come from the run first, and share it up to step 10."
    ]


def test_rows_of_two_versions_are_compared_by_their_content(
    alice: Actor, suite: EvalSuite, tmp_path: Path, settings: Any
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoints = []
    for number, rows in enumerate((["a", "b", "c"], ["c", "b", "b", "d"]), start=1):
        (tmp_path / f"{number}.jsonl").write_text("".join(f'"{row}"\n' for row in rows))
        version = make_version(alice, f"v{number}", rows_path=f"{number}.jsonl", digest=str(number))
        run = {"dataset_version": version}
        checkpoints.append(make_trained(alice, f"run {number}", 10, run_columns=run))
    pair = [make_evaluation(suite, [1] * 12, checkpoint=each) for each in checkpoints]
    assert describe_relation(*pair) == [
        "Two runs from the base model that share no checkpoint.",
        "v2 v1 has 2 rows that v1 v1 has not, and lacks 1 of its rows; 2 are the same.",
    ]
    (tmp_path / "2.jsonl").unlink()
    assert describe_relation(*pair)[1] == "v1 v1 has 0 rows and v2 v1 0."


def test_models_of_two_bases_are_told_apart(alice: Actor, suite: EvalSuite) -> None:
    pair = [make_evaluation(suite, [1] * 12, name=name) for name in ("small", "large")]
    assert describe_relation(*pair) == ["They stand on two base models, small and large."]
    checkpoint = make_checkpoint(make_trained(alice, "x").run, name="y", base_model=find_model())
    assert checkpoint.base_model.name == "model"
