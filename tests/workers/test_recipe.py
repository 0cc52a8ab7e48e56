"""An SFT run over the operation log: recipe and device take turns in one process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.workers.cast import make_device, make_tiny
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs import driving, queue, services, steering
from webapp.runs.models import LogLine, Metric, Operation, Run
from workers import keep_going, recipe
from workers.device import Device
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db

Status = Run.Status
CONFIG: dict[str, Any] = {
    "rank": 4,
    "learning_rate": 0.003,
    "schedule": "constant",
    "batch_size": 4,
    "steps": 6,
    "held_out_share": 0.2,
    "checkpoint_every": 3,
    "evaluate_every": 3,
    "sampling": {"prompts": ["Say one."], "every": 3, "max_tokens": 4},
}


class ProcessKilled(BaseException):
    """As kill -9 ends a process: nothing of it runs any more."""


@dataclass(slots=True, kw_only=True)
class TurnWaiter:
    """While the recipe waits, the device takes its turns; after some of them, one is killed."""

    device: Device = field(default_factory=make_device)
    num_turns: int = 0
    kill_recipe_at: int = -1
    kill_device_at: int = -1
    acts: dict[int, Any] = field(default_factory=dict)

    def wait(self, request_id: str) -> None:
        self.num_turns += 1
        if self.num_turns == self.kill_recipe_at:
            raise ProcessKilled
        if self.num_turns == self.kill_device_at:
            name = self.device.setup.name
            queue.release_worker(worker=name)  # as `workers.device.register` begins
            self.device = make_device(name)
        if act := self.acts.get(self.num_turns):
            act()
        assert run_turn(self.device), f"nothing to do, and {request_id} has not ended"


@pytest.fixture
def run(actor: Actor, version: DatasetVersion) -> Run:
    return make_sft_run(actor, version)


def make_sft_run(actor: Actor, version: DatasetVersion, **changes: Any) -> Run:
    return services.create_run(
        actor=actor,
        origin="browser",
        name="words",
        base_model=BaseModel.objects.first() or make_tiny(),
        dataset_version=version,
        config=CONFIG | changes,
    )


def drive(run: Run, waiter: TurnWaiter | None = None, driver: str = "d1") -> Run:
    assert driving.take_driver(run.pk, driver=driver)
    fresh = Run.objects.get(pk=run.pk)
    recipe.drive(fresh, waiter or TurnWaiter())
    return Run.objects.get(pk=run.pk)


def read_curve(run: Run, key: str = "loss") -> dict[int, float]:
    return dict(Metric.objects.filter(run=run, key=key).values_list("step", "value"))


def read_row_losses(run: Run) -> dict[tuple[int, int], float]:
    rows = run.row_losses.values_list("step", "row", "loss")
    return {(step, row): loss for step, row, loss in rows}


def list_saved(run: Run) -> list[tuple[str, str, int]]:
    rows = Checkpoint.objects.filter(run=run).order_by("seq")
    return list(rows.values_list("kind", "name", "step"))


def test_a_run_trains_to_its_end_and_leaves_what_a_page_shows(run: Run) -> None:
    ended = drive(run)
    assert (ended.status, ended.error) == (Status.DONE, "")
    assert (ended.step, ended.total_steps) == (6, 6)
    losses = read_curve(run)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1]
    held_out = read_curve(run, "held_out_loss")
    assert list(held_out) == [3, 6]
    assert held_out[6] < held_out[3]
    assert list_saved(run) == [("training", "step-000003", 3), ("training", "step-000006", 6)]
    calls = SamplingCall.objects.filter(run=run).order_by("id")
    assert [(call.about["step"], call.checkpoint and call.checkpoint.step) for call in calls] == [
        (0, None),
        (3, 3),
        (6, 6),
    ]
    lines = list(LogLine.objects.filter(run=run).values_list("text", flat=True))
    assert "Saved the checkpoint step-000003." in lines
    assert lines[-1].startswith("Done after 6 steps. Its last loss was ")
    check_row_losses(run, losses)


def check_row_losses(run: Run, losses: Mapping[int, float]) -> None:
    """Each visit of each row; what a step cost is their mean, by learned tokens."""
    visits = list(run.row_losses.values_list("step", "row", "loss"))
    for step, loss in losses.items():
        costs = [cost for at, _, cost in visits if at == step]
        assert min(costs) <= loss <= max(costs)
    assert {row for _, row, _ in visits} <= set(range(1, 31))
    assert len(visits) == len({(step, row) for step, row, _ in visits})


@pytest.mark.parametrize("moment", [2, 5, 9, 14, 17])
def test_a_recipe_that_was_killed_goes_on_and_nothing_is_there_twice(
    actor: Actor, version: DatasetVersion, run: Run, moment: int
) -> None:
    undisturbed = drive(make_sft_run(actor, version))
    device = make_device("w2")
    with pytest.raises(ProcessKilled):
        drive(run, TurnWaiter(device=device, kill_recipe_at=moment))
    assert not driving.take_driver(run.pk, driver="d2")  # not while the lease lasts
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, TurnWaiter(device=device), driver="d2")
    assert ended.status == Status.DONE
    assert read_curve(run) == pytest.approx(read_curve(undisturbed), rel=1e-5)
    assert list_saved(run) == list_saved(undisturbed)
    assert SamplingCall.objects.filter(run=run).count() == 3
    assert read_row_losses(run) == pytest.approx(read_row_losses(undisturbed), rel=1e-4)
    lines = list(LogLine.objects.filter(run=run).values_list("text", flat=True))
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("moment", [2, 6, 11])
def test_a_device_that_was_killed_in_mid_run_changes_no_number(
    actor: Actor, version: DatasetVersion, run: Run, moment: int
) -> None:
    undisturbed = drive(make_sft_run(actor, version))
    ended = drive(run, TurnWaiter(device=make_device("w2"), kill_device_at=moment))
    assert ended.status == Status.DONE
    assert read_curve(run) == pytest.approx(read_curve(undisturbed), rel=1e-5)
    assert list_saved(run) == list_saved(undisturbed)


def test_stop_saves_a_checkpoint_first(actor: Actor, run: Run) -> None:
    stop = lambda: steering.request_stop(actor=actor, run=Run.objects.get(pk=run.pk))  # noqa: E731
    ended = drive(run, TurnWaiter(acts={4: stop}))
    assert (ended.status, ended.wish) == (Status.CANCELLED, "")
    assert ended.step < 6
    assert list_saved(run)[-1] == ("training", f"step-{ended.step:06d}", ended.step)
    last = LogLine.objects.filter(run=run).last()
    assert last is not None
    assert last.text.startswith(f"Stopped after {ended.step} steps; the checkpoint step-")


def test_a_paused_run_goes_on_where_it_was(actor: Actor, version: DatasetVersion, run: Run) -> None:
    undisturbed = drive(make_sft_run(actor, version))
    waiter = TurnWaiter(device=make_device("w2"))
    waiter.acts[6] = lambda: steering.request_pause(actor=actor, run=Run.objects.get(pk=run.pk))
    paused = drive(run, waiter)
    assert paused.status == Status.PAUSED
    assert 0 < paused.step < 6
    assert not driving.take_driver(run.pk, driver="d2")
    steering.resume_run(actor=actor, run=paused)
    ended = drive(run, waiter, driver="d2")
    assert ended.status == Status.DONE
    assert read_curve(run) == pytest.approx(read_curve(undisturbed), rel=1e-5)


def test_wishes_are_fulfilled_between_steps_and_survive_a_kill(actor: Actor, run: Run) -> None:
    def wish() -> None:
        row = Run.objects.get(pk=run.pk)
        steering.request_save(actor=actor, run=row)
        steering.request_evaluation(actor=actor, run=row)
        steering.change_learning_rate(actor=actor, run=row, learning_rate=0.001)

    device = make_device()
    with pytest.raises(ProcessKilled):
        drive(run, TurnWaiter(device=device, acts={2: wish}, kill_recipe_at=14))
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, TurnWaiter(device=device), driver="d2")
    assert ended.status == Status.DONE
    (saved_at,) = ended.steering["save_at"]
    assert 0 < saved_at < 3
    assert ("training", f"step-{saved_at:06d}", saved_at) in list_saved(run)
    assert list(read_curve(run, "held_out_loss")) == [saved_at, 3, 6]
    steps = SamplingCall.objects.filter(run=run).values_list("about__step", flat=True)
    assert sorted(steps) == [0, saved_at, 3, 6]
    assert list(run.annotations.values_list("step", "kind", "text")) == [
        (saved_at, "steering", text)
        for text in ("saved by hand", "evaluated by hand", "learning rate 0.001")
    ]
    rates = read_curve(run, "learning_rate")
    assert rates[1] == pytest.approx(0.003)
    assert rates[saved_at + 1] == pytest.approx(0.001)
    assert rates[6] == pytest.approx(0.001)


def test_a_branch_begins_with_its_parents_weights(
    actor: Actor, version: DatasetVersion, run: Run
) -> None:
    drive(run)
    parent = Checkpoint.objects.get(run=run, step=6)
    branch = services.create_run(
        actor=actor,
        origin="browser",
        name="branch",
        base_model=run.base_model,
        dataset_version=version,
        config=CONFIG,
        parent=parent,
        with_optimizer=True,
    )
    drive(branch)
    assert read_curve(branch)[1] < read_curve(run)[1] / 2
    first = Operation.objects.get(run=branch, seq=0)
    assert first.kind == Operation.Kind.LOAD_WEIGHTS
    assert SamplingCall.objects.get(run=branch, about__step=0).checkpoint == parent


def test_rows_of_which_none_is_left_to_train_on_are_said_on_the_run(
    actor: Actor, version: DatasetVersion
) -> None:
    ended = drive(make_sft_run(actor, version, max_length=8, overlong="drop"))
    assert (ended.status, ended.error_category) == (Status.FAILED, "user")
    assert "raise max_length" in ended.error
    assert LogLine.objects.filter(run=ended, level="error", text__contains="max_length").exists()


def test_what_nobody_foresaw_ends_the_run(run: Run) -> None:
    assert driving.take_driver(run.pk, driver="d1")
    recipe.driven[run.pk] = Run.objects.get(pk=run.pk)
    recipe.fail(run.pk, "Internal error 12ab: the worker's log says more.")
    run.refresh_from_db()
    assert (run.status, run.error_category) == (Status.FAILED, "server")
    assert run.error.startswith("Internal error 12ab")
    assert run.pk not in recipe.driven


def test_a_second_task_for_the_same_run_does_nothing(run: Run) -> None:
    assert driving.take_driver(run.pk, driver="d1")
    recipe.train(run.pk)
    run.refresh_from_db()
    assert run.driver == "d1"
    assert not Operation.objects.exists()


def test_a_driver_that_lost_its_run_leaves_it_alone(run: Run) -> None:
    def steal() -> None:
        Run.objects.filter(pk=run.pk).update(driver="d2")

    ended = drive(run, TurnWaiter(acts={3: steal}))
    assert (ended.status, ended.driver) == (Status.RUNNING, "d2")


def test_a_run_that_finds_no_place_stays_queued(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MAX_DRIVEN", 0)
    recipe.train(run.pk)
    run.refresh_from_db()
    assert (run.status, run.driver) == (Status.QUEUED, "")


def test_a_process_that_ends_leaves_its_run_to_the_next_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter = TurnWaiter(acts={4: keep_going.leave_runs})
    ended = drive(run, waiter)
    keep_going.shutting_down.clear()
    assert (ended.status, ended.driver) == (Status.RUNNING, "")
    assert drive(run, TurnWaiter(device=waiter.device), driver="d2").status == Status.DONE


def test_a_suite_in_the_config_is_evaluated_with_every_checkpoint_of_the_cadence(
    actor: Actor, version: DatasetVersion
) -> None:
    suite = EvalSuite.objects.create(
        project=actor.project, name="words", dataset_version=version, status="ready"
    )
    run = make_sft_run(actor, version, eval_suite=suite.pk)
    drive(run)
    evaluations = Evaluation.objects.filter(run=run).order_by("checkpoint__step")
    assert [each.checkpoint and each.checkpoint.step for each in evaluations] == [3, 6]
