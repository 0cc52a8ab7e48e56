"""What a rule keeps: tables made by hand, and nothing that is needed ever goes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.checkpoints.retention_rules import MOST, Keep, Row, decide
from webapp.core.errors import UserError

AT = datetime(2026, 11, 25, tzinfo=UTC)


def row(name: str, run: str = "a", step: int = 0, **columns: Any) -> Row:
    columns = {"kind": "training", "created_at": AT - timedelta(days=30), **columns}
    return Row(id=name, name=name, run=run, step=step, **columns)


def list_kept(rows: list[Row], **keep: Any) -> set[str]:
    return {name for name, why in decide(rows, Keep(**keep), at=AT).items() if why}


STEPS = [row(f"a{step}", step=step) for step in (100, 200, 300, 400, 500)]


def test_the_last_of_each_run_and_kind_stay() -> None:
    rows = [
        *STEPS,
        row("s400", step=400, kind="sampler"),
        row("s500", step=500, kind="sampler"),
        row("b10", run="b", step=10),
    ]
    assert list_kept(rows, last=1) == {"a500", "s500", "b10"}
    assert list_kept(rows, last=2) == {"a400", "a500", "s400", "s500", "b10"}


def test_the_best_of_the_project_stay_and_of_equals_the_newer() -> None:
    rows = [
        row("low", score=0.1),
        row("old", score=0.7, created_at=AT - timedelta(days=9)),
        row("new", score=0.7, created_at=AT - timedelta(days=8)),
        row("top", run="b", score=0.9),
        row("never graded"),
    ]
    assert list_kept(rows, best=1, suite="s") == {"top"}
    assert list_kept(rows, best=2, suite="s") == {"top", "new"}
    assert list_kept(rows, best=9, suite="s") == {"top", "new", "old", "low"}


def test_regular_steps_stay_and_step_0_is_none() -> None:
    rows = [row("begin", step=0), *STEPS]
    assert list_kept(rows, every=200) == {"a200", "a400"}


def test_the_young_stay_and_one_of_exactly_that_age_does_not() -> None:
    rows = [
        row("fresh", created_at=AT - timedelta(days=6, hours=23)),
        row("old", created_at=AT - timedelta(days=7)),
    ]
    assert list_kept(rows, days=7) == {"fresh"}
    assert list_kept(rows, days=MOST) == {"fresh", "old"}


def test_parts_add_up_and_each_says_why() -> None:
    rows = [replace(STEPS[1], score=0.4), STEPS[3], STEPS[4]]
    why = decide(rows, Keep(best=1, suite="s", last=1, every=200), at=AT)
    assert why == {"a200": ["best", "regular step"], "a400": ["regular step"], "a500": ["last"]}


def test_what_is_needed_stays_and_so_do_all_its_parents() -> None:
    rows = [
        row("root", step=10),
        row("sibling", step=11),
        row("middle", run="b", step=20, parent="root"),
        row("leaf", run="c", step=30, parent="middle", needs=("pinned",)),
        row("newest", run="d", step=99),
    ]
    why = decide(rows, Keep(every=99), at=AT)
    assert why["leaf"] == ["pinned"]
    assert why["middle"] == ["a parent of leaf"]
    assert why["root"] == ["a parent of middle"]
    assert (why["sibling"], why["newest"]) == ([], ["regular step"])


def test_what_a_kept_delta_builds_on_stays_and_a_deltas_that_goes_may_go() -> None:
    rows = [
        row("base", step=1, kind="sampler"),
        row("first", step=2, kind="sampler", previous="base"),
        row("second", step=3, kind="sampler", previous="first"),
        row("other base", run="b", step=1, kind="sampler"),
        row("other delta", run="b", step=2, kind="sampler", previous="other base"),
    ]
    assert list_kept(rows, every=3) == {"base", "first", "second"}


def test_passing_weights_are_not_touched_and_keep_what_they_build_on() -> None:
    rows = [
        row("base", step=1, kind="sampler"),
        row("passing", step=2, kind="sampler", previous="base", is_passing=True),
        row("plain", step=5),
    ]
    why = decide(rows, Keep(every=7), at=AT)
    assert why == {"base": ["a parent of passing"], "passing": [], "plain": []}


def test_a_run_that_goes_on_keeps_its_newest_of_each_kind() -> None:
    rows = [replace(each, is_resume_point=True) for each in STEPS]
    assert decide(rows, Keep(every=200), at=AT)["a500"] == ["its run goes on from here"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "keeps nothing"),
        ({"last": 0, "days": 0}, "keeps nothing"),
        ({"best": 3}, "Choose the suite"),
        ({"suite": "suite-x", "last": 1}, "Say how many of the best"),
        ({"last": -1}, "last is a whole number"),
        ({"last": 10**9}, "last is a whole number"),
        ({"last": True}, "last is a whole number"),
        ({"every": "5"}, "every is a whole number"),
        ({"days": 1.5}, "days is a whole number"),
        ({"suite": 7, "best": 1}, "suite is the id"),
        ({"latest": 1}, "no part 'latest'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Keep.read(given).check()


@st.composite
def families(draw: st.DrawFn) -> list[Row]:
    """Runs that branch from each other's checkpoints, with deltas, needs and passing ones."""
    rows: list[Row] = []
    for place in range(draw(st.integers(1, 25))):
        earlier = [each.id for each in rows]
        pick = st.sampled_from(["", *earlier]) if earlier else st.just("")
        rows.append(
            row(
                f"n{place}",
                run=draw(st.sampled_from("abc")),
                step=draw(st.integers(0, 12)),
                kind=draw(st.sampled_from(["training", "sampler"])),
                created_at=AT - timedelta(days=draw(st.integers(0, 20))),
                score=draw(st.none() | st.floats(0, 1)),
                previous=draw(pick),
                parent=draw(pick),
                needs=draw(st.sampled_from([(), (), ("served",), ("pinned", "public")])),
                is_passing=draw(st.booleans()),
                is_resume_point=draw(st.booleans()),
            )
        )
    return rows


RULES = st.builds(
    Keep,
    best=st.integers(0, 3),
    suite=st.just("s"),
    last=st.integers(0, 2),
    every=st.integers(0, 5),
    days=st.integers(0, 10),
)


@given(families(), RULES)
def test_nothing_that_is_needed_ever_goes(rows: list[Row], keep: Keep) -> None:
    why = decide(rows, keep, at=AT)
    by_id = {each.id: each for each in rows}
    goes = {each.id for each in rows if not why[each.id] and not each.is_passing}
    for each in rows:
        if each.needs:
            assert each.id not in goes
        if each.id not in goes:
            assert each.previous not in goes
            assert each.parent not in goes
    for group in {(each.run, each.kind) for each in rows}:
        same = [each for each in rows if (each.run, each.kind) == group and not each.is_passing]
        waiting = [each for each in same if each.is_resume_point]
        for number, found in ((keep.last, same), (1, waiting)):
            newest = sorted(found, key=lambda each: (each.step, each.created_at, each.id))
            assert not {each.id for each in newest[len(newest) - number :]} & goes if number else 1
    assert all(by_id[name].step % keep.every for name in goes if keep.every and by_id[name].step)


@given(families(), RULES, st.integers(0, 2))
def test_a_rule_that_keeps_more_never_deletes_more(rows: list[Row], keep: Keep, more: int) -> None:
    def find_gone(rule: Keep) -> set[str]:
        return {name for name, why in decide(rows, rule, at=AT).items() if not why}

    wider = replace(keep, best=keep.best + more, last=keep.last + more, days=keep.days + more)
    assert find_gone(wider) <= find_gone(keep)
