"""Diagnostics with the thresholds of a project: when they speak, and the number that they name."""

from datetime import timedelta

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from tests.workers.diagnosing.test_judges import make_points
from webapp.checkpoints.models import Checkpoint
from webapp.runs.findings import list_open
from webapp.runs.history import record_metrics
from webapp.runs.thresholds import Limits, set_thresholds
from workers.diagnose import diagnose, list_ending
from workers.diagnosing import (
    memorising,
    non_finite_or_spiking,
    off_policy,
    sampler_trainer_disagree,
    zero_signal_groups,
)


@pytest.mark.django_db
def test_a_run_is_judged_by_the_thresholds_of_its_project() -> None:
    alice = make_actor()
    run = make_run(alice)
    for step in (1, 2, 3):
        record_metrics(run, step, {"frac_reward_zero_std": 0.4})
    diagnose(run.pk)
    assert list_open(run) == []
    set_thresholds(actor=alice, values={"zero_share": 0.25})
    diagnose(run.pk)
    (found,) = list_open(run)
    assert found.diagnostic == "zero_signal_groups"
    assert "It is said from 25% on." in found.text
    set_thresholds(actor=alice, values={"zero_share": None})
    diagnose(run.pk)
    assert list_open(run) == []


@pytest.mark.django_db
def test_a_project_may_be_told_earlier_of_what_ends() -> None:
    alice, bob = make_actor(), make_actor("bob")
    earlier = make_run(alice)
    later = make_run(bob, earlier.base_model)
    for run in (earlier, later):
        checkpoint = make_checkpoint(run)
        Checkpoint.objects.filter(pk=checkpoint.pk).update(expires_at=now() + timedelta(hours=40))
    assert list_ending() == []
    set_thresholds(actor=alice, values={"expires_hours": 48})
    assert list_ending() == [earlier.pk]


def test_each_sentence_names_the_threshold() -> None:
    differing = sampler_trainer_disagree.judge(
        make_points(0.5, 0.5, 0.5), [], limits=Limits(difference=0.2)
    )
    assert "0.2 is the most allowed" in differing.text
    old = off_policy.judge(make_points(5, 5, 5, 5), [], Limits(age_steps=4, clipped_share=0.4))
    assert "It is said above 4 steps or 40%." in old.text
    idle = zero_signal_groups.judge(make_points(0.9, 0.9, 0.9), what="groups")
    assert "It is said from 50% on." in idle.text
    risen = memorising.judge(
        make_points(1.0, 1.2, 1.4), [2.0, 1.0], since=None, limits=Limits(rises=2, rise_share=0.1)
    )
    assert "after 2 rises in a row, 10% above the best" in risen.text
    losses = make_points(*[1.0] * 15, 1.8)
    assert non_finite_or_spiking.find_spike(losses, []) is None
    spike = non_finite_or_spiking.find_spike(losses, [], limits=Limits(loss_factor=1.5))
    assert spike is not None
    assert "above the limit of 1.5" in non_finite_or_spiking.say(spike)
