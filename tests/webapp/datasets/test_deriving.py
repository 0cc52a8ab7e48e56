"""Versions made of versions: filtered, split, counted before, and described after."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_viewer, sign_in
from tests.webapp.datasets.conftest import upload
from training.data.rows import Row
from training.data.validate import read_normalised
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.analyses import Kind, request_analysis
from webapp.datasets.deriving import derive_versions
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run
from webapp.runs.row_losses import record_row_losses
from workers import analyses, ingest

Status = DatasetVersion.Status


def chat(question: str, answer: str = "yes", **columns: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, **columns}


def make(actor: Actor, version: DatasetVersion, *filters: Any, **more: Any) -> DatasetVersion:
    (derived,) = derive_versions(actor=actor, version=version, filters=list(filters), **more)
    ingest.validate_version(derived.pk)
    derived.refresh_from_db()
    return derived


def read_rows(version: DatasetVersion, home: Path) -> list[Row]:
    return list(read_normalised(home / version.rows_path))


def questions(version: DatasetVersion, home: Path) -> list[str]:
    return [row.messages[0]["content"] for row in read_rows(version, home)]


LONG = "What is the name of the river that flows through the old town of Prague?"
ROWS = [
    chat("one", source="a", level=1),
    chat("two", "No.", source="b", level=2),
    chat("three", source="a", level=2.0),
    chat("one", source="b"),
    chat(LONG),
    chat(LONG.replace("old ", "")),
]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ([{"filter": "length", "most": 10}], "1234"),
        ([{"filter": "length", "least": 8, "most": 10}], "3"),
        ([{"filter": "length", "unit": "messages", "least": 3}], ""),
        ([{"filter": "contains", "pattern": "^t"}], "23"),
        ([{"filter": "contains", "pattern": "^no", "where": "assistant"}], ""),
        (
            [{"filter": "contains", "pattern": "^no", "where": "assistant", "ignore_case": True}],
            "2",
        ),
        ([{"filter": "contains", "pattern": "o", "drop": True}], "3"),
        ([{"filter": "role", "role": "system"}], ""),
        ([{"filter": "role", "role": "system", "drop": True}], "123456"),
        ([{"filter": "metadata", "column": "source", "value": "a"}], "13"),
        ([{"filter": "metadata", "column": "level", "value": "2"}], "23"),
        ([{"filter": "metadata", "column": "source", "value": "a", "drop": True}], "2456"),
        ([{"filter": "duplicates"}], "12356"),
        ([{"filter": "near_duplicates", "threshold": 0.5}], "1235"),
        ([{"filter": "duplicates"}, {"filter": "length", "most": 10}], "123"),
    ],
)
def test_a_filter_keeps_what_it_says_and_its_count_says_the_same(
    alice: Actor, home: Path, filters: list[Any], kept: str
) -> None:
    version = upload(alice, *[row | {"id": place} for place, row in enumerate(ROWS, start=1)])
    analysis = request_analysis(
        actor=alice, version=version, kind=Kind.FILTERS, options={"filters": filters}
    )
    analyses.analyse(str(analysis.pk))
    analysis.refresh_from_db()
    assert analysis.result is not None
    assert (analysis.result["num_rows"], analysis.result["num_kept"]) == (6, len(kept))
    derived = make(alice, version, *filters)
    if not kept:
        assert (derived.status, "no row is left of 6" in derived.error) == (Status.FAILED, True)
        return
    assert "".join(str(row.metadata["id"]) for row in read_rows(derived, home)) == kept
    assert (derived.kind, derived.num_rows) == ("prompt_completion", len(kept))


def test_tokens_are_counted_by_a_base_model(
    alice: Actor, home: Path, base_model: BaseModel
) -> None:
    version = upload(alice, chat("one"), chat("one two three four five six seven eight nine"))
    spec = {"filter": "length", "unit": "tokens", "base_model": base_model.name, "most": 20}
    derived = make(alice, version, spec)
    assert questions(derived, home) == ["one"]


def test_a_version_says_what_it_was_made_of_and_the_origin_what_of_it(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, *ROWS)
    derived = make(alice, version, {"filter": "duplicates"}, {"filter": "length", "most": 10})
    assert (derived.derived_from, derived.dataset, derived.number) == (version, version.dataset, 2)
    page = browser.get(f"/datasets/versions/{derived.pk}/").content.decode()
    assert f'<a href="/datasets/versions/{version.pk}/">sums v1</a>' in page
    assert "each row once; at most 10 characters" in page
    page = browser.get(f"/datasets/versions/{version.pk}/").content.decode()
    assert "Made of it" in page
    assert f"/datasets/versions/{derived.pk}/" in page


def test_the_same_rows_have_the_same_digest_and_the_page_says_so(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, chat("one"), chat("two"))
    derived = make(alice, version, {"filter": "duplicates"})
    assert derived.digest == version.digest
    page = browser.get(f"/datasets/versions/{derived.pk}/").content.decode()
    assert "the same rows as" in page


def test_a_split_puts_every_row_on_one_side_and_equal_rows_on_the_same(
    alice: Actor, home: Path
) -> None:
    rows = [chat(f"number {number}") for number in range(60)]
    version = upload(alice, *rows, *rows)
    made = derive_versions(
        actor=alice, version=version, filters=[], split={"held_out_share": 0.25, "seed": 3}
    )
    for each in made:
        ingest.validate_version(each.pk)
        each.refresh_from_db()
    train, held_out = made
    assert (train.split, held_out.split) == ("train", "held_out")
    sides = [set(questions(each, home)) for each in made]
    assert not sides[0] & sides[1]
    assert train.num_rows + held_out.num_rows == 120
    assert 10 <= held_out.num_rows <= 50
    again = derive_versions(
        actor=alice, version=version, filters=[], split={"held_out_share": 0.25, "seed": 3}
    )
    ingest.validate_version(again[1].pk)
    again[1].refresh_from_db()
    assert again[1].digest == held_out.digest


def test_a_split_by_prompt_keeps_answers_to_one_question_together(alice: Actor, home: Path) -> None:
    rows = [chat(f"number {n}", answer) for n in range(40) for answer in ("yes", "no")]
    version = upload(alice, *rows)
    split = {"held_out_share": 0.5, "by_prompt": True}
    made = derive_versions(actor=alice, version=version, filters=[], split=split)
    sides = []
    for each in made:
        ingest.validate_version(each.pk)
        each.refresh_from_db()
        sides.append(set(questions(each, home)))
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_rows_that_a_run_did_not_learn_or_forgot_can_be_left_out(
    alice: Actor, home: Path, base_model: BaseModel
) -> None:
    version = upload(alice, *[chat(word) for word in ("known", "never", "rising", "other")])
    run = Run.objects.create(
        project=alice.project,
        name="first",
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=8,
        dataset_version=version,
        step=2,
    )
    record_row_losses(run, 1, {1: 2.0, 2: 2.0, 3: 0.5, 4: 1.0})
    record_row_losses(run, 2, {1: 0.1, 2: 1.95, 3: 0.9, 4: 0.2, 9: float("nan")})
    losses = {"filter": "losses", "run": run.pk}
    unlearned = make(alice, version, losses | {"which": "never_learnt"})
    assert questions(unlearned, home) == ["known", "other"]
    risen = make(alice, version, losses | {"which": "rose"})
    assert questions(risen, home) == ["known", "never", "other"]


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({}, "Set a filter or a split"),
        ({"filters": [{"filter": "magic"}]}, r"filters\[0\].filter is not one of length"),
        ({"filters": "all"}, "filters is not a list"),
        ({"filters": [{"filter": "length"}]}, "lacks least or most"),
        ({"filters": [{"filter": "length", "least": 9, "most": 3}]}, "least is larger than most"),
        ({"filters": [{"filter": "length", "most": "x"}]}, "give a whole number"),
        ({"filters": [{"filter": "length", "most": 3, "unit": "tokens"}]}, "lacks base_model"),
        ({"filters": [{"filter": "contains", "pattern": "("}]}, "not a regular expression"),
        ({"filters": [{"filter": "role", "role": "bot"}]}, "give one of system"),
        ({"filters": [{"filter": ["duplicates"]}]}, "is not one of length"),
        ({"filters": [{"filter": "duplicates", "x": 1}]}, "has no setting 'x'"),
        ({"filters": [{"filter": "losses", "run": "run-x", "which": "rose"}]}, "No run run-x"),
        ({"split": {"seed": 1}}, "split is not an object with held_out_share"),
        ({"split": {"held_out_share": 1.5}}, "split.held_out_share is 1.5"),
        ({"filters": [{"filter": "duplicates"}], "name": "n" * 121}, "121 characters"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_sentence(
    alice: Actor, wanted: dict[str, Any], complaint: str
) -> None:
    version = upload(alice, chat("one"))
    with pytest.raises(UserError, match=complaint):
        derive_versions(actor=alice, version=version, **wanted)
    assert DatasetVersion.objects.count() == 1


def test_a_pattern_that_never_ends_is_given_up_with_a_sentence(alice: Actor) -> None:
    version = upload(alice, chat("a" * 40 + "b"))
    derived = make(alice, version, {"filter": "contains", "pattern": "(a|aa|a?)+$"})
    assert derived.status == Status.FAILED
    assert "repeats inside repeats" in derived.error or "no row is left" in derived.error


def test_a_version_whose_origin_is_gone_fails_with_a_sentence(alice: Actor) -> None:
    version = upload(alice, chat("one"))
    (derived,) = derive_versions(actor=alice, version=version, filters=[{"filter": "duplicates"}])
    version.delete()
    ingest.validate_version(derived.pk)
    derived.refresh_from_db()
    assert (derived.status, "was deleted" in derived.error) == (Status.FAILED, True)


FORM = {"pattern": "one", "pattern_act": "drop", "threshold": "0.8", "seed": "0"}


def test_the_form_counts_before_and_makes_what_it_counted(
    alice: Actor, browser: Client, home: Path
) -> None:
    version = upload(alice, *ROWS)
    url = f"/datasets/versions/{version.pk}/derive/"
    assert "Make the version" in browser.get(url).content.decode()
    assert "Counting the rows" in browser.get(f"{url}count/", FORM).content.decode()
    analyses.analyse(str(Analysis.objects.get().pk))
    page = browser.get(f"{url}count/", FORM).content.decode()
    assert "Keeps 4 of 6 rows" in page
    assert "leaves out 2" in page
    answer = browser.post(url, FORM)
    derived = DatasetVersion.objects.get(derived_from=version)
    assert answer.headers["Location"] == f"/datasets/versions/{derived.pk}/"
    ingest.validate_version(derived.pk)
    derived.refresh_from_db()
    assert questions(derived, home)[:2] == ["two", "three"]


def test_what_is_wrong_in_the_form_is_said_at_the_count_and_beside_its_field(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, *ROWS)
    url = f"/datasets/versions/{version.pk}/derive/"
    broken = FORM | {"pattern": "("}
    assert "not a regular expression" in browser.get(f"{url}count/", broken).content.decode()
    assert browser.post(url, broken).status_code == 400
    assert "Set a filter or a split" in browser.post(url, {"seed": "0"}).content.decode()
    many = browser.get(f"{url}count/", FORM | {"least": "-4"})
    assert "At least" in many.content.decode()


def test_a_viewer_and_a_stranger_make_no_version(alice: Actor, charlie: Actor) -> None:
    version = upload(alice, *ROWS)
    url = f"/datasets/versions/{version.pk}/derive/"
    assert sign_in(make_viewer(alice)).post(url, FORM).status_code == 400
    assert sign_in(charlie).post(url, FORM).status_code == 404
    assert sign_in(charlie).get(f"/datasets/versions/{version.pk}/rows.csv").status_code == 404
    assert DatasetVersion.objects.count() == 1


KINDS: list[list[dict[str, Any]]] = [
    [chat("a,\n“b”", id=1), chat("c", tags=["x", {"y": 1}])],
    [{"prompt": "a", "chosen": "b", "rejected": "c", "score": 0.5}],
    [{"prompt": "a", "target": "5", "tests": ["t"]}, {"prompt": "b", "level": "x"}],
    [{"text": "Once", "n": 1}, {"text": "=twice", "n": "two"}],
]


@pytest.mark.parametrize("rows", KINDS)
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_an_export_has_every_column_and_comes_back_as_the_same_rows(
    alice: Actor, browser: Client, home: Path, format: str, rows: list[dict[str, Any]]
) -> None:
    version = upload(alice, *rows)
    answer = browser.get(f"/datasets/versions/{version.pk}/rows.{format}")
    content = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    assert f'filename="sums-v1.{format}"' in answer.headers["Content-Disposition"]
    if format == "csv":
        header = next(csv.reader(io.StringIO(content.decode())))
        assert set(header) >= {key for row in read_rows(version, home) for key in row.metadata}
    again = DatasetVersion.objects.create(
        project=alice.project,
        dataset=version.dataset,
        number=9,
        filename=f"rows.{format}",
        upload_path=f"uploads/again/rows.{format}",
        kind=version.kind,
    )
    (home / "uploads" / "again").mkdir(parents=True)
    (home / again.upload_path).write_bytes(content)
    ingest.validate_version(again.pk)
    again.refresh_from_db()
    assert (again.status, again.num_rows) == (Status.READY, version.num_rows)
    said = [(row.messages, row.key) for row in read_rows(again, home)]
    assert said == [(row.messages, row.key) for row in read_rows(version, home)]
    if format == "jsonl":
        assert again.digest == version.digest


def test_an_export_of_an_unknown_format_is_not_there(alice: Actor, browser: Client) -> None:
    version = upload(alice, chat("one"))
    assert browser.get(f"/datasets/versions/{version.pk}/rows.xlsx").status_code == 404


def test_json_of_a_line_can_be_read_by_anybody(alice: Actor, browser: Client) -> None:
    version = upload(alice, chat("one", id=7))
    answer = browser.get(f"/datasets/versions/{version.pk}/rows.jsonl")
    (line,) = b"".join(answer.streaming_content).splitlines()  # type: ignore[attr-defined]
    assert json.loads(line)["id"] == 7
    assert re.match(r"attachment; filename=", answer.headers["Content-Disposition"])
