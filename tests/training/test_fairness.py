"""Turns by virtual time: shares are kept, and nobody gains by being away or by having many runs."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.fairness import Shares


def serve(shares: Shares, runs: list[str], *, tokens: int, helping: int) -> Counter[str]:
    """Tokens by run, where everybody always has more to do."""
    served: Counter[str] = Counter()
    while served.total() < tokens:
        run = shares.find_next(runs)
        shares.charge(run, helping)
        served[run] += helping
    return served


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=6))
def test_groups_are_served_by_their_shares(weights: list[float]) -> None:
    shares, runs = Shares(), [str(number) for number in range(len(weights))]
    for run, weight in zip(runs, weights, strict=True):
        shares.join(run, group=f"group {run}", share=weight)
    served = serve(shares, runs, tokens=20_000, helping=10)
    for run, weight in zip(runs, weights, strict=True):
        assert served[run] == pytest.approx(20_000 * weight / sum(weights), abs=60)


def test_a_group_with_many_runs_has_no_more_than_a_group_with_one() -> None:
    shares = Shares()
    many = [f"many {number}" for number in range(9)]
    for run in many:
        shares.join(run, group="many")
    shares.join("one", group="one")
    served = serve(shares, [*many, "one"], tokens=18_000, helping=10)
    assert served["one"] == pytest.approx(9000, abs=20)
    assert all(served[run] == pytest.approx(1000, abs=20) for run in many)


def test_who_comes_back_has_no_credit_from_the_time_away() -> None:
    shares = Shares()
    for run in ("stayed", "left"):
        shares.join(run, group=run)
    shares.leave("left")
    serve(shares, ["stayed"], tokens=10_000, helping=10)
    shares.join("left", group="left")
    served = serve(shares, ["stayed", "left"], tokens=1000, helping=10)
    assert served["left"] == pytest.approx(500, abs=20)


def test_who_leaves_and_comes_back_still_owes_what_was_overdrawn() -> None:
    shares = Shares()
    for run in ("greedy", "modest"):
        shares.join(run, group=run)
    shares.charge("greedy", 1000)
    shares.leave("greedy")
    shares.join("greedy", group="greedy")
    served = serve(shares, ["greedy", "modest"], tokens=1000, helping=10)
    assert served["greedy"] <= 10


def test_a_share_that_changed_counts_from_then_on() -> None:
    shares = Shares()
    for run in ("a", "b"):
        shares.join(run, group=run)
    serve(shares, ["a", "b"], tokens=1000, helping=10)
    shares.join("a", group="a", share=3.0)
    served = serve(shares, ["a", "b"], tokens=4000, helping=10)
    assert served["a"] == pytest.approx(3000, abs=30)


def test_nothing_is_kept_of_who_left_once_the_debts_are_settled() -> None:
    shares = Shares()
    shares.join("stays", group="stays")
    for number in range(50):
        run = f"short {number}"
        shares.join(run, group=run)
        shares.charge(run, 30)
        shares.leave(run)
        shares.leave(run)
        serve(shares, ["stays"], tokens=100, helping=10)
    assert len(shares.groups.accounts) <= 3
    assert len(shares.runs) <= 3
    assert shares.group_of.keys() == {"stays"}
