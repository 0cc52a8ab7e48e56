"""Runs that end before their last step: by their own rule, or at a checkpoint somebody named."""

from typing import Any

import pytest

from tests.workers.cast import make_device
from tests.workers.test_recipe import (
    ProcessKilled,
    TurnWaiter,
    drive,
    list_saved,
    make_sft_run,
    read_curve,
)
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.runs import steering
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

Status = Run.Status
# No gain of a whole nat comes after the first measurement: the third ends it.
EARLY: dict[str, Any] = {
    "steps": 12,
    "evaluate_every": 2,
    "checkpoint_every": 0,
    "learning_rate": 1e-6,
    "early_stop": {"patience": 2, "min_delta": 1.0},
}


def read_log(run: Run) -> list[str]:
    return list(run.log_lines.values_list("text", flat=True))


def test_a_run_that_gets_no_better_ends_early_with_its_weights_saved(
    actor: Actor, version: DatasetVersion
) -> None:
    ended = drive(make_sft_run(actor, version, **EARLY))
    assert (ended.status, ended.step, ended.total_steps) == (Status.DONE, 6, 12)
    assert list(read_curve(ended, "held_out_loss")) == [2, 4, 6]
    assert list_saved(ended)[-1] == ("training", "step-000006", 6)
    assert any(text.startswith("Stopped early: held_out_loss was") for text in read_log(ended))
    assert read_log(ended)[-1].startswith("Done after 6 steps.")
    assert list(ended.annotations.values_list("step", "text")) == [(6, "stopped early")]


@pytest.mark.parametrize("moment", [8, 12, 16, 18])
def test_a_run_that_ends_early_ends_there_after_a_kill_too(
    actor: Actor, version: DatasetVersion, moment: int
) -> None:
    run, device = make_sft_run(actor, version, **EARLY), make_device()
    with pytest.raises(ProcessKilled):
        drive(run, TurnWaiter(device=device, kill_recipe_at=moment))
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, TurnWaiter(device=device), driver="d2")
    assert (ended.status, ended.step) == (Status.DONE, 6)
    lines = read_log(ended)
    assert len(lines) == len(set(lines))


def test_a_run_that_goes_on_becoming_better_is_not_ended(
    actor: Actor, version: DatasetVersion
) -> None:
    changes = {**EARLY, "steps": 6, "learning_rate": 0.003, "early_stop": {"patience": 1}}
    assert drive(make_sft_run(actor, version, **changes)).step == 6


def test_a_number_that_is_never_measured_cannot_end_a_run(
    actor: Actor, version: DatasetVersion
) -> None:
    for missing in ({"evaluate_every": 0}, {"held_out_share": 0}):
        with pytest.raises(UserError, match="never measured"):
            make_sft_run(actor, version, **{**EARLY, **missing})


def test_a_run_that_is_to_stop_at_its_next_checkpoint_trains_nothing_beyond_it(
    actor: Actor, version: DatasetVersion
) -> None:
    run = make_sft_run(actor, version)

    def ask() -> None:
        row = Run.objects.get(pk=run.pk)
        steering.request_stop_after_save(actor=actor, run=row)

    ended = drive(run, TurnWaiter(acts={3: ask}))
    assert (ended.status, ended.step) == (Status.CANCELLED, 3)
    assert list_saved(ended) == [("training", "step-000003", 3)]
    assert (
        read_log(ended)[-1] == "Stopped after 3 steps; the checkpoint step-000003 has the weights."
    )


def test_one_that_is_asked_after_its_last_checkpoint_is_simply_done(
    actor: Actor, version: DatasetVersion
) -> None:
    run = make_sft_run(actor, version, checkpoint_every=0)
    steering.request_stop_after_save(actor=actor, run=run)
    ended = drive(run)
    assert (ended.status, ended.step) == (Status.DONE, 6)
