"""Clock cycles: whatever shares the passes, whoever comes late, each run has what it has alone."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.cycle import HELPINGS, Cycle, Outcome, Pack
from training.engine.tally import Tally
from training.errors import InvalidInput
from training.fairness import Shares
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

LOSSES = (
    *("cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "stable_reinforce"),
    *("dapo", "dppo", "reinforce"),
)
SHARED = 18  # tokens that the datums of a request may begin with

generated = partial(
    settings, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Stir = Callable[[Engine, str], None]


@st.composite
def draw_specs(draw: st.DrawFn) -> LoraSpec:
    attn, mlp, unembed = draw(st.sampled_from([(1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 1)]))
    return LoraSpec(
        rank=draw(st.integers(1, 8)),
        alpha=draw(st.sampled_from([4.0, 32.0])),
        train_attn=bool(attn),
        train_mlp=bool(mlp),
        train_unembed=bool(unembed),
    )


@st.composite
def draw_requests(draw: st.DrawFn) -> ForwardBackward:
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    data = make_data(*lengths, seed=draw(st.integers(0, 99)))
    return ForwardBackward(
        data=begin_alike(data) if draw(st.booleans()) else data,
        loss_fn=draw(st.sampled_from(LOSSES)),
        forward_only=draw(st.sampled_from([False, False, False, True])),
    )


def begin_alike(data: list[Datum]) -> list[Datum]:
    first = max(data, key=lambda datum: len(datum.tokens)).tokens[:SHARED]
    return [
        replace(datum, tokens=np.append(first[: len(datum.tokens)], datum.tokens[SHARED:]))
        for datum in data
    ]


# Of each its requests: the next one begins once the last one has ended.
tenants = st.lists(
    st.tuples(draw_specs(), st.lists(draw_requests(), min_size=1, max_size=3)),
    min_size=1,
    max_size=6,
)
arrivals = st.lists(st.integers(0, 3), min_size=6, max_size=6)  # before which pass each comes
budgets = st.sampled_from([8, 24, 60, 4096])


@pytest.fixture(scope="module")
def shared_engine(random_paths: dict[str, Path]) -> Engine:
    return Engine.load(random_paths["llama"])


def open_cycle(engine: Engine) -> Cycle:
    return Cycle(engine, Shares())


def add(cycle: Cycle, run: str, request: ForwardBackward, **place: float) -> None:
    cycle.shares.join(run, group=run, **place)
    cycle.add(run, request)


def read_gradients(engine: Engine, run: str) -> torch.Tensor:
    return engine.adapters.by_run[run].gradients.clone()


def run_alone(
    engine: Engine, run: str, *requests: ForwardBackward
) -> tuple[list[Outcome], torch.Tensor]:
    outputs = [engine.forward_backward({run: request})[run] for request in requests]
    gradients = read_gradients(engine, run)
    engine.drop_gradients(run)
    return outputs, gradients


def run_late(
    cycle: Cycle, requests: Mapping[str, list[ForwardBackward]], arrives: Mapping[str, int]
) -> dict[str, list[Outcome]]:
    """Each comes before the pass with its number, or once nothing else is left."""
    outcomes: dict[str, list[Outcome]] = {run: [] for run in requests}
    away, number = list(requests), 0
    while away or cycle.entries:
        for run in [run for run in away if arrives[run] <= number or not cycle.entries]:
            away.remove(run)
            add(cycle, run, requests[run][0])
        for run, outcome in cycle.step().items():
            outcomes[run].append(outcome)
            if following := requests[run][len(outcomes[run]) :]:
                add(cycle, run, following[0])
        number += 1
    return outcomes


@generated()
@given(mix=tenants, late=arrivals, budget=budgets)
def test_a_run_in_a_shared_cycle_has_the_numbers_that_it_has_alone(
    shared_engine: Engine,
    stir: Stir,
    mix: list[tuple[LoraSpec, list[ForwardBackward]]],
    late: list[int],
    budget: int,
) -> None:
    engine, requests, alone = shared_engine, {}, {}
    engine.token_budget = 4096
    for number, (spec, asked) in enumerate(mix):
        run = "x" * (number + 1)
        engine.create_adapter(run, spec)
        stir(engine, run)
        requests[run] = asked
        alone[run] = run_alone(engine, run, *asked)
    engine.token_budget = budget
    outcomes = run_late(open_cycle(engine), requests, dict(zip(requests, late, strict=False)))
    for run, (expected, gradients) in alone.items():
        for output, wanted in zip(outcomes[run], expected, strict=True):
            assert_same(output, wanted)
        largest = max(1.0, float(gradients.abs().max()))
        assert (read_gradients(engine, run) - gradients).abs().max() <= 1e-5 * largest
        assert engine.has_gradients(run) is not all(each.forward_only for each in requests[run])
        engine.drop(run)


def assert_same(output: Outcome, wanted: Outcome) -> None:
    assert isinstance(output, ForwardBackwardOutput)
    assert isinstance(wanted, ForwardBackwardOutput)
    assert output.metrics == pytest.approx(wanted.metrics, rel=1e-5, abs=1e-5)
    for left, right in zip(output.logprobs, wanted.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Pack]:
    """What the passes held, from now on; nothing is computed."""
    seen: list[Pack] = []
    monkeypatch.setattr(Engine, "run_pack", lambda _, pack, tallies: seen.append(pack))
    return seen


def learn(*lengths: int, seed: int = 0) -> ForwardBackward:
    return ForwardBackward(data=make_data(*lengths, seed=seed))


def open_runs(engine: Engine, *runs: str) -> None:
    for run in runs:
        engine.create_adapter(run, LoraSpec(rank=1))


def list_lengths(packs: list[Pack]) -> list[list[int]]:
    return [sorted(item.length for item in pack.items) for pack in packs]


def test_passes_stay_within_the_budget_unless_one_datum_is_larger(
    engine: Engine, packs: list[Pack]
) -> None:
    engine.token_budget = 40
    engine.forward_backward({"run": learn(30, 10, 12, 9, 50)})
    lengths = list_lengths(packs)
    assert all(sum(pack) <= 40 or pack == [50] for pack in lengths)
    assert sorted(length for pack in lengths for length in pack) == [9, 10, 12, 30, 50]


def test_a_run_alone_is_cut_the_same_way_whatever_came_before(
    engine: Engine, packs: list[Pack]
) -> None:
    engine.token_budget = 50
    request = learn(9, 30, 7, 7, 41, 20, 3, 3, 12)
    engine.forward_backward({"run": request})
    expected = [pack.items for pack in packs]
    open_runs(engine, "other")
    cycle = open_cycle(engine)
    add(cycle, "run", learn(48, 2))
    add(cycle, "other", learn(9, 30))
    cycle.finish()
    packs.clear()
    add(cycle, "run", request)
    cycle.finish()
    assert [[item.index for item in pack.items] for pack in packs] == [
        [item.index for item in items] for items in expected
    ]


def test_a_run_alone_has_the_same_bits_whatever_came_before(engine: Engine, stir: Stir) -> None:
    stir(engine, "run")
    engine.token_budget = 50
    request = learn(9, 30, 7, 7, 41, 20)
    outputs, gradients = run_alone(engine, "run", request)
    open_runs(engine, "other")
    cycle = open_cycle(engine)
    add(cycle, "other", learn(30, 9))
    cycle.step()
    engine.drop_gradients("run")
    cycle.finish()
    again, same = run_alone(engine, "run", request)
    assert torch.equal(same, gradients)
    for left, right in zip(again, outputs, strict=True):
        assert left.metrics == right.metrics  # type: ignore[union-attr]


def test_neighbours_that_begin_alike_still_lie_together(engine: Engine, packs: list[Pack]) -> None:
    open_runs(engine, "other")
    one, two = make_data(25, 26, seed=5)
    ends = [
        Datum(
            tokens=np.append(begin.tokens, end), inputs=make_data(len(begin.tokens) + 1)[0].inputs
        )
        for end in (1, 2)
        for begin in (one, two)
    ]
    engine.token_budget = 4 * HELPINGS * 27
    engine.forward_backward({"run": ForwardBackward(data=ends), "other": learn(40, 41, 42)})
    mine = [item.index for item in packs[0].items if item.run == "run"]
    assert sorted(map(sorted, (mine[:2], mine[2:]))) == [[0, 2], [1, 3]]


def test_each_request_ends_with_its_own_last_datum(engine: Engine, packs: list[Pack]) -> None:
    open_runs(engine, "large", "small")
    engine.token_budget = 40
    cycle = open_cycle(engine)
    add(cycle, "large", learn(*[30] * 5))
    assert not cycle.step()
    add(cycle, "small", learn(8))
    assert cycle.step().keys() == {"small"}
    assert set(packs[-1].runs) == {"small", "large"}
    assert cycle.finish().keys() == {"large"}
    assert len(packs) == 5


def test_what_computes_gradients_and_what_only_looks_share_no_pass(
    engine: Engine, packs: list[Pack]
) -> None:
    open_runs(engine, "looks")
    look = ForwardBackward(data=make_data(5, 6), forward_only=True)
    outcomes = engine.forward_backward({"looks": look, "run": learn(7)})
    assert outcomes.keys() == {"looks", "run"}
    assert {(pack.runs, pack.forward_only) for pack in packs} == {
        (("looks",), True),
        (("run",), False),
    }


def test_a_suspect_goes_alone(engine: Engine, packs: list[Pack]) -> None:
    open_runs(engine, "suspect", "other")
    cycle = open_cycle(engine)
    for run in ("run", "suspect", "other"):
        cycle.shares.join(run, group=run)
        cycle.add(run, learn(7, 8), is_alone=run == "suspect")
    cycle.finish()
    assert sorted(map(sorted, (pack.runs for pack in packs))) == [["other", "run"], ["suspect"]]


def test_a_run_that_is_dropped_is_in_no_later_pass(engine: Engine, packs: list[Pack]) -> None:
    open_runs(engine, "gone")
    engine.token_budget = 10
    cycle = open_cycle(engine)
    add(cycle, "run", learn(8, 9))
    add(cycle, "gone", learn(8, 9))
    cycle.step()
    cycle.drop("gone")
    num_before = len(packs)
    assert cycle.finish().keys() == {"run"}
    assert not any("gone" in pack.runs for pack in packs[num_before:])


def test_a_request_that_cannot_be_computed_does_not_begin(engine: Engine) -> None:
    cycle = open_cycle(engine)
    with pytest.raises(InvalidInput):
        cycle.add("unknown", learn(5))
    with pytest.raises(InvalidInput):
        cycle.add("run", ForwardBackward(data=[]))
    assert not cycle.entries


def count_until(cycle: Cycle, packs: list[Pack], victim: str) -> Counter[str]:
    """Tokens by run that go through until the victim's request is done; the others never end."""
    packs.clear()
    while victim in cycle.entries:
        for run in cycle.step().keys() - {victim}:
            cycle.add(run, learn(30, 30, 30, 30))
    counted: Counter[str] = Counter()
    for pack in packs:
        for item in pack.items:
            counted[item.run] += item.length
    return counted


@generated()
@given(
    share=st.sampled_from([0.5, 1.0, 3.0]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    num_before=st.integers(0, 12),
    num_greedy=st.integers(1, 7),
    budget=st.sampled_from([32, 64, 200]),
)
def test_how_long_one_waits_is_bounded_by_ones_own_tokens_and_not_by_what_others_have_queued(
    shared_engine: Engine,
    share: float,
    lengths: list[int],
    num_before: int,
    num_greedy: int,
    budget: int,
) -> None:
    """Whatever the others did before: while it waits, each of them gets what its share is beside
    the victim's tokens, and beyond that what it takes at a time."""
    engine, packs = shared_engine, list[Pack]()
    greedy = [f"greedy {number}" for number in range(num_greedy)]
    open_runs(engine, "victim", *greedy)
    engine.token_budget = budget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run_pack", lambda _, pack, tallies: packs.append(pack))
        cycle = open_cycle(engine)
        for run in greedy:
            add(cycle, run, learn(30, 30, 30, 30))
        for _ in range(num_before):
            for run in cycle.step():
                cycle.add(run, learn(30, 30, 30, 30))
        add(cycle, "victim", learn(*lengths), share=share)
        counted = count_until(cycle, packs, "victim")
    for run in ("victim", *greedy):
        engine.drop(run)
    helping = budget / HELPINGS + 30  # what is taken at once, with a datum that reaches over
    for run in greedy:
        assert counted[run] <= sum(lengths) / share + helping + budget
    assert counted["victim"] == sum(lengths)


def test_seven_small_tenants_do_not_wait_for_the_hundred_large_requests_of_one(
    engine: Engine, packs: list[Pack]
) -> None:
    """In order of arrival the first of them would wait for 48,000 tokens."""
    small = [f"small {number}" for number in range(7)]
    open_runs(engine, "large", *small)
    engine.token_budget = 240
    cycle, num_done = open_cycle(engine), 0
    add(cycle, "large", learn(*[30] * 16))
    for run in small:
        add(cycle, run, learn(8, 9))
    while num_done < 100:
        ended = cycle.step()
        assert ended.keys() >= set(small)
        for run in ended:
            num_done += run == "large"
            cycle.add(run, learn(*[30] * 16) if run == "large" else learn(8, 9))


def test_once_its_loss_has_failed_nothing_more_of_a_request_is_computed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    def fail_small(engine: Engine, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        computed.extend(pack.runs)
        if "run" in pack.runs:
            tallies["run"].error = InvalidInput("its loss broke")

    monkeypatch.setattr(Engine, "run_pack", fail_small)
    open_runs(engine, "other")
    engine.token_budget = 20
    outcomes = engine.forward_backward({"run": learn(18, 18, 18), "other": learn(18, 18)})
    assert str(outcomes["run"]) == "its loss broke"
    assert isinstance(outcomes["other"], ForwardBackwardOutput)
    assert Counter(computed) == {"run": 1, "other": 2}
