"""What a worker finds out about rows: twins, leaks, lengths, changes."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks

from tests.webapp.cast import make_actor
from tests.workers.cast import make_tiny
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.analyses import announce_analyses, request_analysis, retry_analysis
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.datasets.records import Analysis
from webapp.evals.models import EvalSuite
from workers import analyses, claims

RIVER = "What is the name of the river that flows through the old town of Prague today?"


def chat(question: str, answer: str = "The Vltava flows there.") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def make_version(actor: Actor, home: Path, *rows: dict[str, Any], kind: str = "") -> DatasetVersion:
    dataset, _ = Dataset.objects.get_or_create(project=actor.project, name="questions")
    number = dataset.versions.count() + 1
    path = home / f"rows{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=dataset,
        number=number,
        status=DatasetVersion.Status.READY,
        filename=path.name,
        format="jsonl",
        kind=kind or "conversation",
        upload_path=path.name,
        rows_path=path.name,
        num_rows=len(rows),
    )


def ask(actor: Actor, version: DatasetVersion, kind: str, **options: Any) -> dict[str, Any]:
    analysis = request_analysis(actor=actor, version=version, kind=kind, options=options)
    analyses.analyse(str(analysis.pk))
    analysis.refresh_from_db()
    assert analysis.error == ""
    assert analysis.result is not None
    return dict(analysis.result)


def test_near_duplicates_are_shown_in_pairs(actor: Actor, tmp_path: Path) -> None:
    other = RIVER.replace("today", "now")
    version = make_version(
        actor, tmp_path, chat(RIVER), chat("Hi", "Hey"), chat(other), chat("Hi", "Hey")
    )
    found = ask(actor, version, "near_duplicates", threshold=0.7)
    assert (found["num_rows"], found["num_exact"], found["num_twins"]) == (4, 1, 2)
    assert found["num_groups"] == 2
    near, same = found["pairs"]
    assert (near["first"]["number"], near["second"]["number"]) == (1, 3)
    assert 0.7 <= near["similarity"] < 1
    assert "old town of Prague now?" in near["second"]["text"]
    assert (same["similarity"], same["first"]["number"], same["second"]["number"]) == (1, 2, 4)


def test_leaks_are_the_same_rows_and_near_ones_of_the_other_side(
    actor: Actor, tmp_path: Path
) -> None:
    train = make_version(actor, tmp_path, chat("Hi", "Hey"), chat(RIVER), chat("Alone", "Quite"))
    held_out = make_version(
        actor, tmp_path, chat("Else", "No"), chat(RIVER.replace("today", "now")), chat("Hi", "Hey")
    )
    found = ask(actor, train, "leakage", against=held_out.pk, threshold=0.7)
    assert (found["num_rows"], found["num_others"]) == (3, 3)
    assert (found["num_exact"], found["num_near"], found["num_pairs"]) == (1, 1, 2)
    pairs = {(pair["first"]["number"], pair["second"]["number"]) for pair in found["pairs"]}
    assert pairs == {(3, 1), (2, 2)}


def test_what_a_suite_asks_is_found_among_the_rows(actor: Actor, tmp_path: Path) -> None:
    version = make_version(actor, tmp_path, chat("Hi", "Hey"), chat(RIVER))
    items = [{"messages": chat(RIVER)["messages"][:1], "target": "Vltava", "row": 1}]
    suite = EvalSuite.objects.create(
        project=actor.project, name="rivers", status="ready", items=items, num_items=1
    )
    found = ask(actor, version, "leakage", suite=suite.pk)
    assert (found["other"], found["num_exact"], found["num_near"]) == ("rivers", 1, 0)
    (pair,) = found["pairs"]
    assert (pair["second"]["number"], pair["first"]["text"]) == (2, RIVER)


def test_tokens_are_counted_for_every_row_and_against_the_context(
    actor: Actor, tmp_path: Path
) -> None:
    tiny = make_tiny()
    rows = [chat("Hi", "Hey"), chat("Hi", "word " * 600)]
    found = ask(actor, make_version(actor, tmp_path, *rows), "tokens", base_model="tiny")
    assert (found["num_rows"], found["num_over"], found["context"]) == (2, 1, tiny.context_tokens)
    assert sum(rows for _, _, rows in found["bins"]) == 2
    assert found["num_refused"] == 0
    pair = {"messages": rows[0]["messages"][:1], "chosen": [{"role": "assistant", "content": "a"}]}
    pair["rejected"] = [{"role": "assistant", "content": "word " * 30}]
    version = make_version(actor, tmp_path, pair, kind="preference")
    longest = ask(actor, version, "tokens", base_model="tiny")["longest"]
    version = make_version(actor, tmp_path, {"text": "one two"}, kind="text")
    assert ask(actor, version, "tokens", base_model="tiny")["longest"] < longest


def test_a_difference_counts_rows_by_what_they_say(actor: Actor, tmp_path: Path) -> None:
    before = make_version(actor, tmp_path, chat("a"), chat("b"), chat("b"))
    after = make_version(actor, tmp_path, chat("b"), chat("c"), chat("a"))
    found = ask(actor, after, "difference", against=before.pk)
    assert (found["num_added"], found["num_removed"], found["num_same"]) == (1, 1, 2)
    assert [row["number"] for row in found["added"]] == [2]
    assert found["removed"][0]["text"].startswith("b\n")


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("poems", {}, "The kind is one of filters"),
        ("near_duplicates", {"threshold": 2}, "threshold is 2: give a number from 0.5 to 1"),
        ("near_duplicates", {"shape": 2}, "has no option 'shape'"),
        ("leakage", {"against": "dsv-none"}, "no dataset version 'dsv-none'"),
        ("leakage", {}, "no dataset version ''"),
        ("leakage", {"suite": "suite-none"}, "no eval suite suite-none"),
        ("tokens", {"base_model": "none"}, "offers no base model none"),
        ("difference", {"against": ["x"]}, "no dataset version"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    actor: Actor, tmp_path: Path, kind: str, options: dict[str, Any], complaint: str
) -> None:
    version = make_version(actor, tmp_path, chat("a"))
    with pytest.raises(UserError, match=complaint):
        request_analysis(actor=actor, version=version, kind=kind, options=options)


def test_a_version_of_somebody_else_is_compared_with_by_nobody(
    actor: Actor, tmp_path: Path
) -> None:
    theirs = make_version(make_actor("charlie"), tmp_path, chat("secret"))
    mine = make_version(actor, tmp_path, chat("a"))
    for kind in ("leakage", "difference"):
        options = {"against": theirs.pk}
        with pytest.raises(UserError, match="no dataset version"):
            request_analysis(actor=actor, version=mine, kind=kind, options=options)
    with pytest.raises(UserError, match="compared with another one"):
        request_analysis(actor=actor, version=mine, kind="leakage", options={"against": mine.pk})


def test_a_question_is_answered_once_and_a_lost_one_asked_again(
    actor: Actor,
    tmp_path: Path,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    version = make_version(actor, tmp_path, chat("a"))
    wanted: dict[str, Any] = {
        "actor": actor, "version": version, "kind": "near_duplicates", "options": {}
    }  # fmt: skip
    first = request_analysis(**wanted)
    assert request_analysis(**wanted) == first
    with django_capture_on_commit_callbacks() as sent:
        announce_analyses()
    assert sent == []
    Analysis.objects.update(created_at=now() - timedelta(minutes=5))
    with django_capture_on_commit_callbacks() as sent:
        announce_analyses()
        request_analysis(**wanted)
    assert len(sent) == 2
    analyses.fail(str(first.pk), "no disk")
    assert "no disk" in request_analysis(**wanted).error
    assert retry_analysis(**wanted).is_waiting


def test_a_worker_that_ended_three_times_gives_the_question_up(
    actor: Actor, tmp_path: Path
) -> None:
    version = make_version(actor, tmp_path, chat("a"))
    analysis = request_analysis(actor=actor, version=version, kind="near_duplicates", options={})
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"analysis-{analysis.pk}").write_bytes(b"." * claims.MAX_ATTEMPTS)
    analyses.analyse(str(analysis.pk))
    analysis.refresh_from_db()
    assert "ended 3 times" in analysis.error


def test_a_deleted_other_side_is_said(actor: Actor, tmp_path: Path) -> None:
    mine, other = (make_version(actor, tmp_path, chat("a")) for _ in range(2))
    options = {"against": other.pk}
    analysis = request_analysis(actor=actor, version=mine, kind="difference", options=options)
    other.delete()
    analyses.analyse(str(analysis.pk))
    analysis.refresh_from_db()
    assert "was deleted" in analysis.error
