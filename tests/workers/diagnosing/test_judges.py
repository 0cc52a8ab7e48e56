"""The pure part of each diagnostic: too little, just below, just above."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from webapp.runs.diagnostics import State
from workers.diagnosing import (
    ages as aging,
)
from workers.diagnosing import (
    checkpoint_will_expire,
    export_differs,
    memorising,
    non_finite_or_spiking,
    off_policy,
    reward_hacking,
    sampler_trainer_disagree,
    sequential_client,
    stale_sampler,
    token_hacking,
    zero_signal_groups,
)
from workers.diagnosing.points import Point
from workers.diagnosing.reward_hacking import Answer
from workers.diagnosing.sequential_client import Step
from workers.diagnosing.stale_sampler import Call, Save
from workers.diagnosing.verdict import Verdict

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def make_points(*values: float, first: int = 1) -> list[Point]:
    return [Point(step=step, value=value, at=at(step)) for step, value in enumerate(values, first)]


def make_steps(number: int, *, took: float, gap: float) -> list[Step]:
    """Each pass takes `took` seconds, and its step is asked for `gap` seconds after that."""
    length = took + max(gap, 0)
    return [
        Step(
            passed_from=at(length * place),
            passed_at=at(length * place + took),
            asked_at=at(length * place + took + gap),
        )
        for place in range(number)
    ]


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], State.WAITING),
        (make_steps(7, took=0.2, gap=0.1), State.WAITING),
        (make_steps(8, took=0.2, gap=0.1), State.FOUND),
        (make_steps(30, took=0.099, gap=0.1), State.WAITING),  # too short to tell
        (make_steps(30, took=0.2, gap=-0.19), State.CLEAR),  # submitted ahead
        (make_steps(30, took=10.0, gap=0.09), State.CLEAR),  # less than 1 % is lost
        (make_steps(30, took=10.0, gap=0.11), State.FOUND),
    ],
)
def test_a_sequential_client_is_one_that_waits_and_loses_by_it(
    steps: Sequence[Step], state: State
) -> None:
    assert sequential_client.judge(steps, step=9).state == state


@pytest.mark.parametrize(("waits", "state"), [(7, State.CLEAR), (8, State.FOUND)])
def test_it_takes_most_steps_to_call_a_client_sequential(waits: int, state: State) -> None:
    steps = [
        *make_steps(waits, took=0.2, gap=0.1),
        *make_steps(10 - waits, took=0.2, gap=-0.1),
    ]
    assert sequential_client.judge(steps, step=9).state == state


def test_the_last_pass_of_a_batch_is_the_one_that_counts() -> None:
    fb, step = "forward_backward", "optim_step"
    rows = [
        (step, at(0), at(1)),  # of a batch whose passes are not in the window
        (fb, at(2), at(3)),
        (fb, at(4), at(6)),
        (step, at(5), at(7)),
        (step, at(8), at(9)),  # nothing went before it
        (fb, at(9), at(10)),
    ]
    (found,) = sequential_client.pair(rows)
    assert (found.passed_from, found.passed_at, found.asked_at) == (at(4), at(6), at(5))
    assert not found.is_sequential


def make_saves(number: int) -> list[Save]:
    return [Save(at=at(10 * place), step=place) for place in range(number)]


def make_call(moment: float, *, saved: int) -> Call:
    return Call(at=at(moment), saved_at=at(10 * saved), step=saved)


STALE = [make_call(moment, saved=0) for moment in (21, 22, 31, 32)]


@pytest.mark.parametrize(
    ("calls", "state"),
    [
        ([], State.WAITING),
        (STALE, State.FOUND),
        (STALE[:3], State.CLEAR),  # too few to speak of
        ([make_call(at, saved=0) for at in (31, 32, 33, 34)], State.CLEAR),  # a last comparison
        ([make_call(at, saved=0) for at in (11, 12, 21, 22)], State.CLEAR),  # one save behind
        ([*STALE, make_call(33, saved=3)], State.CLEAR),  # an old one beside a fresh one
        ([make_call(11 + 10 * k, saved=k) for k in range(3)], State.CLEAR),  # one behind, always
    ],
)
def test_a_stale_sampler_is_one_that_is_kept_over_saves(
    calls: Sequence[Call], state: State
) -> None:
    assert stale_sampler.judge(make_saves(4), calls).state == state


def test_a_stale_sampler_is_seen_where_it_began_and_how_far_it_is_behind() -> None:
    calls = [*STALE, make_call(41, saved=0)]
    verdict = stale_sampler.judge(make_saves(5), calls)
    assert verdict.step == 2
    assert "4 optimizer steps and 4 saves older" in verdict.text


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ((), State.NOT_APPLICABLE),
        ((0.0101,), State.FOUND),
        ((0.01,), State.CLEAR),
        ((0.002, 0.002, 0.025), State.CLEAR),  # the mean of three
        ((0.002, 0.004, 0.025), State.FOUND),
    ],
)
def test_sampler_and_trainer_disagree_by_more_than_rounding(
    values: Sequence[float], state: State
) -> None:
    assert sampler_trainer_disagree.judge(make_points(*values), []).state == state


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ((), State.NOT_APPLICABLE),
        ((1.0, 1.0), State.WAITING),
        ((0.5, 0.5, 0.49), State.CLEAR),
        ((0.0, 0.5, 1.0), State.FOUND),
        ((1.0, 1.0, 1.0), State.FOUND),
    ],
)
def test_groups_without_a_signal_are_half_of_them_or_more(
    values: Sequence[float], state: State
) -> None:
    verdict = zero_signal_groups.judge(make_points(*values), what="groups")
    assert verdict.state == state
    assert (verdict.level == "error") is (values == (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("differences", "ages", "state"),
    [
        ((0.001, 0.05, 0.001, 0.05), (0, 1, 0, 1), State.CLEAR),  # later substeps of one batch
        ((0.02, 0.05, 0.02, 0.05), (0, 1, 0, 1), State.FOUND),
        ((0.09, 0.09), (3, 4), State.CLEAR),  # none is fresh, and it is what was learned since
        ((0.11, 0.11), (3, 4), State.FOUND),
    ],
)
def test_samples_that_are_some_steps_old_may_differ_by_more(
    differences: Sequence[float], ages: Sequence[float], state: State
) -> None:
    points, old = make_points(*differences), make_points(*ages)
    assert sampler_trainer_disagree.judge(points, [], old).state == state


def make_lasting(hours: float, *reasons: str) -> checkpoint_will_expire.Lasting:
    return checkpoint_will_expire.Lasting(
        id=f"ckpt-{hours}", name="best", step=5, expires_at=at(3600 * hours), reasons=reasons
    )


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ([], State.CLEAR),
        ([make_lasting(23.9, "served")], State.FOUND),
        ([make_lasting(24.1, "served")], State.CLEAR),
        ([make_lasting(1.0)], State.CLEAR),  # nobody needs it
        ([make_lasting(-1.0, "served")], State.FOUND),  # in use just now, and then it goes
    ],
)
def test_a_checkpoint_that_is_needed_and_ends_within_a_day_is_named(
    ending: Sequence[checkpoint_will_expire.Lasting], state: State
) -> None:
    assert checkpoint_will_expire.judge(ending, moment=BEGIN).state == state


def test_the_first_to_end_is_named_and_all_can_be_kept() -> None:
    ending = [make_lasting(9, "served"), make_lasting(2, "the run's best", "served")]
    verdict = checkpoint_will_expire.judge(ending, moment=BEGIN)
    assert "best is the run's best and served" in verdict.text
    assert "its time ends on 01 January at 02:00 UTC, and 1 more. Keep it." in verdict.text
    assert [each["can_keep"] for each in verdict.facts["checkpoints"]] == [True, True]
    later = checkpoint_will_expire.judge(ending, moment=at(600))
    assert later.text == verdict.text


def find_spike(*losses: float) -> non_finite_or_spiking.Spike | None:
    return non_finite_or_spiking.find_spike(make_points(*losses), [])


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ((*[1.0] * 9, 9.0), None),  # too few before it
        ((*[1.0] * 10, 2.01), 11),
        ((*[1.0] * 10, 2.0), None),
        ((*[0.1] * 10, 0.59), None),  # 6 times as much, and less than half a nat
        ((*[0.1] * 10, 0.61), 11),
        ((*[0.5, 1.5] * 5, 5.9), None),  # it varies that much
        ((*[0.5, 1.5] * 5, 6.1), 11),
        ((*[1.0] * 10, 9.0, *[1.0] * 19), 11),
        ((*[1.0] * 10, 9.0, *[1.0] * 20), None),  # it is over
        ((*[-1.0, 1.0] * 6, 50.0), None),  # of advantages: its size says nothing
    ],
)
def test_a_loss_spikes_against_the_steps_before_it(
    losses: Sequence[float], step: int | None
) -> None:
    spike = find_spike(*losses)
    assert (spike.step if spike else None) == step


@pytest.mark.parametrize(("norm", "is_found"), [(19.9, False), (20.1, True)])
def test_a_gradient_norm_spikes_at_twenty_times_the_usual(norm: float, is_found: bool) -> None:
    calm, norms = make_points(*[1.0] * 11), make_points(*[1.0] * 10, norm)
    spike = non_finite_or_spiking.find_spike(calm, norms)
    assert (spike is not None) is is_found
    assert spike is None or spike.name == "gradient norm"


@pytest.mark.parametrize(("floor", "is_found"), [(0.4, True), (0.6, False)])
def test_a_norm_below_that_of_the_beginning_is_no_spike(floor: float, is_found: bool) -> None:
    calm, norms = make_points(*[0.1] * 11), make_points(*[0.01] * 10, 0.5)
    assert (non_finite_or_spiking.find_spike(calm, norms, floor) is not None) is is_found


@pytest.mark.parametrize(
    ("last_step", "value", "is_over"),
    [(25, 1.0, False), (31, 1.0, True), (31, 2.1, False), (500, 9.0, False)],
)
def test_a_loss_that_does_not_come_back_stays_a_spike(
    last_step: int, value: float, is_over: bool
) -> None:
    kept = [11, 9.0, 1.0, 2.0]
    lasting = non_finite_or_spiking.find_lasting(make_points(value, first=last_step), kept)
    assert (lasting is None) is is_over


@pytest.mark.parametrize(
    ("held_out", "trained", "state"),
    [
        ((1.0, 1.1, 1.2), (0.9, 0.8), State.WAITING),
        ((1.0, 1.1, 1.2, 1.3), (0.9, 0.8, 0.7), State.FOUND),
        ((1.0, 1.1, 1.2, 1.3), (0.9, 0.9, 0.9), State.CLEAR),  # the training loss stands still
        ((1.0, 1.1, 1.2, 1.3), (0.9,), State.CLEAR),  # nothing is known of it
        ((2.0, 1.1, 1.0, 1.2, 1.1), (0.9, 0.8, 0.7), State.CLEAR),  # up and down
        ((1.0, 1.005, 1.01, 1.019), (0.9, 0.8, 0.7), State.CLEAR),  # within 2 % of the best
        ((1.0, 1.005, 1.01, 1.021), (0.9, 0.8, 0.7), State.FOUND),
    ],
)
def test_memorising_is_a_held_out_loss_that_rises_three_times(
    held_out: Sequence[float], trained: Sequence[float], state: State
) -> None:
    points = make_points(*held_out)
    assert memorising.judge(points, trained, since=None).state == state


def test_memorising_lasts_until_the_held_out_loss_is_near_its_best_again() -> None:
    level = make_points(1.0, 1.1, 1.2, 1.3, 1.25, 1.26)
    assert memorising.judge(level, [], since=None).state == State.CLEAR
    lasting = memorising.judge(level, [], since=4)
    assert (lasting.state, lasting.step) == (State.FOUND, 4)
    assert (lasting.facts["best_step"], lasting.memory) == (1, {"since": 4})
    assert "best at step 1 with 1" in lasting.text
    better = make_points(1.0, 1.1, 1.2, 1.3, 1.01)
    assert memorising.judge(better, [], since=4).state == State.CLEAR


def make_answers(
    number: int,
    text: str = "It is 7 since 3 and 4 make that.",
    *,
    reward: float | None = None,
    rewards: Mapping[str, float] | None = None,
) -> list[Answer]:
    """Half of them are worth 1, unless told."""
    return [
        Answer(
            step=place // 8,
            group=place // 4 % 2,
            index=place % 4,
            text=text,
            reward=float(place % 2) if reward is None else reward,
            rewards=rewards or {},
        )
        for place in range(number)
    ]


def test_it_takes_many_answers_to_speak_of_hacking() -> None:
    repeats = "so it is so it is so it is so it is so it is so it is"
    assert reward_hacking.judge(make_answers(63, repeats)).state == State.WAITING
    verdict = reward_hacking.judge(make_answers(64, repeats))
    assert verdict.state == State.FOUND
    assert "repeat the same phrases" in verdict.text
    assert verdict.facts["answers"][0]["text"] == repeats


def test_ordinary_answers_show_nothing() -> None:
    assert reward_hacking.judge(make_answers(64)).state == State.CLEAR


@pytest.mark.parametrize(("every", "state"), [(4, State.FOUND), (7, State.CLEAR)])
def test_unreadable_characters_count_in_rewarded_answers(every: int, state: State) -> None:
    answers = make_answers(84, reward=1.0)
    bad = make_answers(84, "fine \ufffd\x07 fine", reward=1.0)
    mixed = [bad[k] if k % every == 0 else answers[k] for k in range(84)]
    verdict = reward_hacking.judge(mixed)
    assert verdict.state == state
    unrewarded = make_answers(84, "fine \ufffd\x07 fine", reward=0.0)
    assert reward_hacking.judge(unrewarded).state == State.CLEAR


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("plain\n\ttext", 0.0), ("äöü 漢字 🙂", 0.0), ("a\ufffd", 0.5), ("\x00\x07", 1.0)],
)
def test_other_scripts_and_line_ends_are_readable(text: str, share: float) -> None:
    assert reward_hacking.measure_unreadable(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("form", "right", "state"),
    [
        (0.91, 0.09, State.FOUND),
        (0.89, 0.09, State.CLEAR),
        (0.91, 0.11, State.CLEAR),
    ],
)
def test_a_reward_for_the_format_alone_is_named(form: float, right: float, state: State) -> None:
    answers = make_answers(64, rewards={"regex": form, "numeric": right})
    assert reward_hacking.judge(answers).state == state
    alone = make_answers(64, rewards={"regex": form})
    assert reward_hacking.judge(alone).state == State.CLEAR


@pytest.mark.parametrize(("growth", "state"), [(3.0, State.FOUND), (1.0, State.CLEAR)])
def test_answers_that_grow_because_length_pays_are_named(growth: float, state: State) -> None:
    answers = [
        Answer(
            step=place,
            group=0,
            index=0,
            text="x" * int(20 + (place % 9) + (growth - 1) * place),
            reward=(20 + (place % 9) + (growth - 1) * place) / 100,
            rewards={},
        )
        for place in range(64)
    ]
    verdict = reward_hacking.judge(answers)
    assert verdict.state == state
    assert ("Longer answers earn more" in verdict.text) is (state == State.FOUND)


@pytest.mark.parametrize(
    ("repeated", "state"),
    [
        ((0.9, 0.9, 0.9), State.WAITING),
        ((0.5, 0.5, 0.5, 0.49), State.CLEAR),
        ((0.5, 0.5, 0.5, 0.5), State.FOUND),
        ((0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1), State.CLEAR),
    ],
)
def test_a_clients_repetitive_answers_are_seen_by_their_tokens(
    repeated: Sequence[float], state: State
) -> None:
    lengths = make_points(*[20.0] * len(repeated))
    assert token_hacking.judge(lengths, [], make_points(*repeated)).state == state


@pytest.mark.parametrize(
    ("correlation", "growth", "state"),
    [(0.6, 1.6, State.FOUND), (0.59, 1.6, State.CLEAR), (0.9, 1.4, State.CLEAR)],
)
def test_a_clients_answers_that_grow_because_length_pays_are_seen(
    correlation: float, growth: float, state: State
) -> None:
    lengths = make_points(*[20.0] * 4, *[20.0 * growth] * 4)
    correlations = make_points(*[correlation] * 8)
    assert token_hacking.judge(lengths, correlations, []).state == state


def test_a_run_without_advantages_has_no_reward_to_hack() -> None:
    assert token_hacking.judge([], [], []).state == State.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("ages", "clipped", "state"),
    [
        ((), (), State.NOT_APPLICABLE),
        ((20.0,) * 3, (), State.WAITING),
        ((8.0,) * 4, (), State.CLEAR),
        ((8.0, 8.0, 8.0, 9.0), (), State.FOUND),
        ((), (0.9,) * 4, State.WAITING),
        ((0.0,) * 4, (0.3,) * 5, State.CLEAR),
        ((0.0,) * 4, (0.3, 0.3, 0.3, 0.3, 0.31), State.FOUND),
    ],
)
def test_off_policy_is_by_age_or_by_what_is_clipped(
    ages: Sequence[float], clipped: Sequence[float], state: State
) -> None:
    verdict = off_policy.judge(make_points(*ages), make_points(*clipped))
    assert verdict.state == state


def test_the_age_of_samples_is_counted_from_the_weights_that_were_sampled_last() -> None:
    calls = [(at(5), 4), (at(9), 8), (None, 9)]
    aged = aging.measure_age(Point(step=9, value=0.0, at=at(8)), calls)
    assert aged is not None
    assert aged.value == 4.0
    assert aging.measure_age(Point(step=1, value=0.0, at=at(1)), calls) is None


def test_each_substep_of_a_recipes_batch_is_one_step_older() -> None:
    told = [Point(step=2, value=0.0, at=at(2)), Point(step=4, value=2.0, at=at(4))]
    aged = aging.spread(told, make_points(*[0.1] * 5), num_substeps=2)
    assert [(point.step, point.value) for point in aged] == [(1, 0), (2, 1), (3, 2), (4, 3)]


def judge_copies(*differs: bool) -> Verdict:
    return export_differs.judge(
        [
            export_differs.Copy(
                id=str(place),
                checkpoint="ckpt-1",
                name="last",
                step=7,
                kind="peft export",
                differs=each,
                difference=3.0 if each else 0.002,
                culprit="The tensor lora_B was changed." if each else "",
            )
            for place, each in enumerate(differs)
        ]
    )


def test_a_copy_that_differs_is_named_with_what_is_wrong_with_it() -> None:
    assert judge_copies(False, False).state == State.CLEAR
    verdict = judge_copies(False, True)
    assert (verdict.state, verdict.level, verdict.step) == (State.FOUND, "error", 7)
    assert "peft export of last differs from what was trained by up to 3 nats" in verdict.text
    assert "The tensor lora_B was changed." in verdict.text
