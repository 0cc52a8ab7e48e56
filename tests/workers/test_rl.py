"""Reinforcement learning over the log: recipe, device and sampling server in one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import make_device, make_tiny
from tests.workers.rollouts import ProcessKilled, RolloutWaiter
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import expire_checkpoints
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs import driving, services, steering
from webapp.runs.models import LogLine, Metric, Operation, Run
from webapp.runs.records import Rollout
from webapp.wire.passes import decode_output
from workers import recipe

pytestmark = pytest.mark.django_db

Status = Run.Status
CONFIG: dict[str, Any] = {
    "rank": 4,
    "learning_rate": 0.002,
    "batch_size": 4,
    "group_size": 4,
    "max_tokens": 6,
    "steps": 4,
    "held_out_share": 0.1,
    "checkpoint_every": 2,
    "evaluate_every": 2,
    "sampling": {"every": 0},
    "graders": [{"name": "exact_match"}],
}


@pytest.fixture
def sums(actor: Actor, tmp_path: Path) -> DatasetVersion:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "target": str(a + b)}
        for a in range(10)
        for b in range(0, 10, 3)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="sums"),
        number=1,
        status=DatasetVersion.Status.READY,
        kind=DatasetVersion.Kind.PROMPT,
        filename="sums.jsonl",
        format="jsonl",
        upload_path="sums.jsonl",
        rows_path="sums.jsonl",
        num_rows=len(rows),
    )


def make_rl_run(actor: Actor, version: DatasetVersion, **changes: Any) -> Run:
    return services.create_run(
        actor=actor,
        origin="browser",
        name="sums",
        base_model=BaseModel.objects.first() or make_tiny(),
        dataset_version=version,
        config=CONFIG | changes,
        recipe="rl",
    )


def drive(run: Run, waiter: RolloutWaiter | None = None, driver: str = "d1") -> Run:
    assert driving.take_driver(run.pk, driver=driver)
    fresh = Run.objects.select_related("base_model", "dataset_version", "parent").get(pk=run.pk)
    recipe.drive(fresh, waiter or RolloutWaiter())
    return Run.objects.get(pk=run.pk)


def read_curve(run: Run, key: str) -> dict[int, float]:
    return dict(Metric.objects.filter(run=run, key=key).values_list("step", "value"))


def list_operations(run: Run) -> list[tuple[int, str]]:
    return list(Operation.objects.filter(run=run).order_by("seq").values_list("seq", "kind"))


def list_rollouts(run: Run) -> list[tuple[Any, ...]]:
    columns = ("step", "group", "index", "completion", "reward", "advantage", "is_dropped")
    return list(Rollout.objects.filter(run=run).values_list(*columns))


def test_a_run_samples_learns_and_keeps_what_a_page_shows(
    actor: Actor, sums: DatasetVersion
) -> None:
    run = drive(make_rl_run(actor, sums))
    assert (run.status, run.error) == (Status.DONE, "")
    assert (run.step, run.total_steps) == (4, 4)
    for key in ("reward/mean", "reward/exact_match", "entropy", "frac_reward_zero_std"):
        assert list(read_curve(run, key)) == [1, 2, 3, 4]
    assert read_curve(run, "reward/mean") == read_curve(run, "reward/exact_match")
    assert set(read_curve(run, "staleness").values()) == {0.0}
    assert 0 < read_curve(run, "reward/mean")[1] <= 1
    assert list(read_curve(run, "held_out/reward")) == [2, 4]
    # Samples come from the very weights that learn from them.
    assert max(read_curve(run, "sampler/kl").values()) < 1e-3
    rollouts = Rollout.objects.filter(run=run)
    assert rollouts.count() == 4 * 4 * 4
    first, last = rollouts.filter(step=1)[0], rollouts.filter(step=4)[0]
    assert first.checkpoint is None
    assert last.checkpoint is not None
    assert (last.checkpoint.step, last.digest) == (3, last.checkpoint.digest)
    assert first.prompt[0]["content"].startswith("What is ")
    assert [each["id"] for each in first.tokens]
    assert all(each["logprob"] <= 0 for each in first.tokens)
    kept = Checkpoint.objects.filter(run=run, is_ephemeral=False).order_by("seq")
    assert list(kept.values_list("name", flat=True)) == ["step-000002", "step-000004"]
    last_line = LogLine.objects.filter(run=run).order_by("pk").last()
    assert last_line is not None
    assert last_line.text.startswith("Done after 4 steps. Its last mean reward was ")


@pytest.mark.parametrize("moment", [3, 7, 12, 17])
def test_a_recipe_that_was_killed_has_the_same_rollouts_and_the_same_log(
    actor: Actor, sums: DatasetVersion, moment: int
) -> None:
    undisturbed = drive(make_rl_run(actor, sums))
    run, waiter = make_rl_run(actor, sums), RolloutWaiter(device=make_device("w2"))
    waiter.kill_recipe_at = moment
    with pytest.raises(ProcessKilled):
        drive(run, waiter)
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, waiter, driver="d2")
    assert (ended.status, ended.error) == (Status.DONE, "")
    assert list_operations(run) == list_operations(undisturbed)
    assert list_rollouts(run) == list_rollouts(undisturbed)
    for key in ("reward/mean", "loss", "held_out/reward"):
        assert read_curve(run, key) == pytest.approx(read_curve(undisturbed, key), rel=1e-4)
    assert SamplingCall.objects.filter(run=run).count() == (
        SamplingCall.objects.filter(run=undisturbed).count()
    )
    lines = list(LogLine.objects.filter(run=run).values_list("text", flat=True))
    assert len(lines) == len(set(lines))


def test_batches_are_sampled_ahead_where_that_is_allowed(
    actor: Actor, sums: DatasetVersion
) -> None:
    run = drive(make_rl_run(actor, sums, max_steps_off_policy=1, loss="ppo", num_substeps=2))
    assert (run.status, run.error) == (Status.DONE, "")
    # Two optimizer steps learn from each batch; from the second on it is one batch old.
    assert read_curve(run, "staleness") == {2: 0.0, 4: 2.0}
    assert list(read_curve(run, "clip/share")) == [2, 4]
    assert (run.step, run.total_steps) == (4, 4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_penalty_holds_the_policy_near_what_it_began_with(
    actor: Actor, sums: DatasetVersion, temperature: float
) -> None:
    run = drive(make_rl_run(actor, sums, kl_coefficient=0.1, temperature=temperature))
    assert (run.status, run.error) == (Status.DONE, "")
    divergence = read_curve(run, "kl/reference")
    assert divergence[1] == pytest.approx(0, abs=1e-3)  # at first it is the reference
    assert abs(divergence[4]) > 1e-3


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_policy_that_learns_is_the_one_that_was_sampled_at_its_temperature(
    actor: Actor, sums: DatasetVersion, temperature: float
) -> None:
    run = drive(make_rl_run(actor, sums, temperature=temperature, steps=1, evaluate_every=0))
    assert (run.status, run.error) == (Status.DONE, "")
    learned = Operation.objects.get(run=run, kind="forward_backward")
    metrics = decode_output(bytes(learned.result or b"")).metrics
    assert metrics["ratio:mean"] == pytest.approx(1, abs=1e-4)
    assert read_curve(run, "sampler/kl")[1] < 1e-6
    assert read_curve(run, "sampler/logprob_difference_mean")[1] < 1e-4


def test_a_batch_that_teaches_nothing_is_counted_and_said(
    actor: Actor, sums: DatasetVersion
) -> None:
    never = [{"name": "regex", "pattern": "^never said$"}]
    run = drive(make_rl_run(actor, sums, graders=never, steps=2, checkpoint_every=0))
    assert (run.status, run.step) == (Status.DONE, 2)
    assert read_curve(run, "frac_reward_zero_std") == {1: 1.0, 2: 1.0}
    assert "loss" not in set(Metric.objects.filter(run=run).values_list("key", flat=True))
    first, second = Checkpoint.objects.filter(run=run, kind="sampler").order_by("seq")
    assert first.digest == second.digest
    assert all(Rollout.objects.filter(run=run).values_list("is_dropped", flat=True))
    text = LogLine.objects.filter(run=run, step=1, text__startswith="Step 1: in none of").get().text
    assert text.endswith("so nothing was learned from them.")


def test_a_grader_that_cannot_grade_is_said_once_with_its_reason(
    actor: Actor, sums: DatasetVersion
) -> None:
    graders = [{"name": "exact_match", "column": "nothing"}]
    run = drive(make_rl_run(actor, sums, graders=graders, steps=2, checkpoint_every=0))
    assert run.status == Status.DONE
    [said] = LogLine.objects.filter(run=run, text__contains="could not grade")
    assert said.level == LogLine.Level.WARNING
    assert said.text.startswith("Step 1: exact_match could not grade 16 of 16 answers, which earn")
    assert said.text.endswith("the row has no column nothing, which exact_match compares with.")


def test_weights_that_are_sampled_from_next_do_not_expire_while_the_run_is_paused(
    actor: Actor, sums: DatasetVersion
) -> None:
    run = make_rl_run(actor, sums)
    pause = lambda: steering.request_pause(actor=actor, run=Run.objects.get(pk=run.pk))  # noqa: E731
    waiter = RolloutWaiter(acts={8: pause})
    paused = drive(run, waiter)
    assert paused.status == Status.PAUSED
    Checkpoint.objects.update(expires_at=run.created_at)
    expire_checkpoints()
    steering.resume_run(actor=actor, run=Run.objects.get(pk=run.pk))
    ended = drive(run, waiter, driver="d2")
    assert (ended.status, ended.error) == (Status.DONE, "")


def test_a_reward_model_compares_held_out_answers_with_those_of_the_beginning(
    actor: Actor, sums: DatasetVersion
) -> None:
    judge = drive(make_rl_run(actor, sums, steps=1, checkpoint_every=1, evaluate_every=0))
    saved = Checkpoint.objects.get(run=judge, kind="training")
    graders = [{"name": "preference", "checkpoint": saved.pk}]
    run = drive(make_rl_run(actor, sums, graders=graders, steps=2, learning_rate=0.01))
    assert (run.status, run.error) == (Status.DONE, "")
    rewards = read_curve(run, "held_out/reward")
    assert list(rewards) == [2]
    assert 0 < rewards[2] < 1
    # Asked apart from what the steps learn from, and each held-out answer of the beginning once.
    abouts = [call.about for call in SamplingCall.objects.filter(run=run)]
    compared = [about for about in abouts if about.get("by") == "preference"]
    assert {about["held_out"] for about in compared if "held_out" in about} == {2}
    assert all(("held_out" in about) != ("step" in about) for about in compared)
    begun = [about["held_out"] for about in abouts if about.get("begun_with")]
    assert begun == list(range(len(begun)))
