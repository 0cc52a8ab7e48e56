"""An SFT run of all weights over the operation log: the same life as an adapter's run."""

from typing import Any

import pytest

from tests.workers.cast import make_device
from tests.workers.test_recipe import (
    CONFIG,
    TurnWaiter,
    drive,
    list_saved,
    make_sft_run,
    read_curve,
)
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.runs import services, steering
from webapp.runs.models import Run
from workers.errands import FULL_SAMPLED_SECONDS

pytestmark = pytest.mark.django_db

FULL = {**CONFIG, "rank": 0, "learning_rate": 0.001}


@pytest.fixture
def run(actor: Actor, version: DatasetVersion) -> Run:
    return make_sft_run(actor, version, **FULL)


def list_types(run: Run) -> list[tuple[str, str]]:
    rows = Checkpoint.objects.filter(run=run).order_by("seq")
    return list(rows.values_list("kind", "type"))


def test_it_trains_to_its_end_and_leaves_what_a_page_shows(run: Run) -> None:
    ended = drive(run)
    assert (ended.status, ended.error, ended.step) == (Run.Status.DONE, "", 6)
    losses = read_curve(run)
    assert losses[6] < losses[1]
    held_out = read_curve(run, "held_out_loss")
    assert list(held_out) == [3, 6]
    assert held_out[6] < held_out[3]
    assert list_saved(run) == [("training", "step-000003", 3), ("training", "step-000006", 6)]
    assert list_types(run) == [("training", "base")] * 2
    steps = SamplingCall.objects.filter(run=run).values_list("about__step", flat=True)
    assert sorted(steps) == [0, 3, 6]


@pytest.mark.parametrize("moment", [3, 8])
def test_a_device_that_was_killed_in_mid_run_changes_no_number(
    actor: Actor,
    version: DatasetVersion,
    run: Run,
    moment: int,
) -> None:
    undisturbed = drive(make_sft_run(actor, version, **FULL))
    ended = drive(run, TurnWaiter(device=make_device("w2"), kill_device_at=moment))
    assert ended.status == Run.Status.DONE
    assert read_curve(run) == read_curve(undisturbed)
    digests = [
        list(Checkpoint.objects.filter(run=each).order_by("seq").values_list("digest", flat=True))
        for each in (run, undisturbed)
    ]
    assert digests[0] == digests[1]


def test_stop_saves_a_whole_model_with_its_optimizer_first(actor: Actor, run: Run) -> None:
    stop = lambda: steering.request_stop(actor=actor, run=Run.objects.get(pk=run.pk))  # noqa: E731
    ended = drive(run, TurnWaiter(acts={4: stop}))
    assert ended.status == Run.Status.CANCELLED
    saved = Checkpoint.objects.filter(run=run).latest("seq")
    assert (saved.name, saved.type) == (f"step-{ended.step:06d}", "base")
    assert saved.has_optimizer


def test_samples_between_checkpoints_are_of_differences_that_leave_the_disk_soon(
    actor: Actor,
    version: DatasetVersion,
) -> None:
    sampling: dict[str, Any] = {"prompts": ["Say one."], "every": 1, "max_tokens": 4}
    run = make_sft_run(actor, version, **FULL | {"sampling": sampling})
    drive(run)
    of_samples = Checkpoint.objects.filter(run=run, is_ephemeral=True).order_by("seq")
    assert "delta" in {each.type for each in of_samples}
    for each in of_samples.filter(type="delta"):
        assert each.previous is not None
        assert each.ratio is not None
        assert 0 < each.ratio < 1
    for each in of_samples:
        assert each.expires_at is not None
        lifetime = each.expires_at - each.created_at
        assert lifetime.total_seconds() == pytest.approx(FULL_SAMPLED_SECONDS, abs=5)


def test_a_branch_goes_on_with_its_parents_weights_and_moments(
    actor: Actor,
    version: DatasetVersion,
    run: Run,
) -> None:
    """It learns the same rows from their beginning: as far as another that went on the same way."""
    drive(run)
    parent = Checkpoint.objects.get(run=run, step=6)
    branches = [
        services.create_run(
            actor=actor,
            origin="browser",
            name="branch",
            base_model=run.base_model,
            dataset_version=version,
            config={key: value for key, value in FULL.items() if key != "rank"},
            parent=parent,
            with_optimizer=with_optimizer,
        )
        for with_optimizer in (True, True, False)
    ]
    curves = [read_curve(drive(branch)) for branch in branches]
    assert curves[0] == curves[1]
    assert curves[0][1] == curves[2][1]
    assert curves[0][2] != curves[2][2]
    assert curves[0][1] < read_curve(run)[1]
