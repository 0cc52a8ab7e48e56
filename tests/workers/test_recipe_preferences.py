"""Runs that learn from pairs, over the operation log: what they leave, and drivers that die."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.recipes.pairs import differences_over_sums
from tests.workers.cast import make_device, make_tiny
from tests.workers.test_recipe import ProcessKilled, TurnWaiter, drive, list_saved, read_curve
from training.data.validate import dump_row
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs import services
from webapp.runs.models import LogLine, Operation, Run

pytestmark = pytest.mark.django_db

Status = Run.Status
CONFIG = {
    "rank": 4,
    "learning_rate": 0.002,
    "schedule": "constant",
    "batch_size": 4,
    "steps": 4,
    "held_out_share": 0.2,
    "evaluate_every": 2,
    "sampling": {"every": 0},
}


@pytest.fixture
def pairs(actor: Actor, tmp_path: Path) -> DatasetVersion:
    rows = list(differences_over_sums())[:40]
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(dump_row(row) for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="pairs"),
        number=1,
        status=DatasetVersion.Status.READY,
        kind=DatasetVersion.Kind.PREFERENCE,
        filename="pairs.jsonl",
        format="jsonl",
        upload_path="pairs.jsonl",
        rows_path="pairs.jsonl",
        num_rows=len(rows),
    )


def make_dpo_run(
    actor: Actor,
    pairs: DatasetVersion,
    recipe: str = "dpo",
    parent: Checkpoint | None = None,
    **changes: Any,
) -> Run:
    return services.create_run(
        actor=actor,
        origin="rest",
        name="prefers",
        base_model=BaseModel.objects.first() or make_tiny(),
        dataset_version=pairs,
        config=CONFIG | changes,
        recipe=recipe,
        parent=parent,
    )


def test_a_run_measures_its_reference_and_learns_to_prefer(
    actor: Actor, pairs: DatasetVersion
) -> None:
    ended = drive(make_dpo_run(actor, pairs))
    assert (ended.status, ended.error, ended.step) == (Status.DONE, "", 4)
    assert ended.config["beta"] == 0.1
    losses = read_curve(ended, "dpo/loss")
    assert losses[1] == pytest.approx(0.693147, abs=1e-4)
    assert losses[4] < losses[1]
    assert read_curve(ended) == losses
    accuracy = read_curve(ended, "held_out/accuracy")
    assert list(accuracy) == [2, 4]
    assert accuracy[4] > 0.8
    lines = list(LogLine.objects.filter(run=ended).values_list("text", flat=True))
    assert any("pairs to learn from in 4 steps" in line for line in lines)
    assert any(line.startswith("Held-out loss after step 4: ") for line in lines)
    # The reference alone comes before the first gradient.
    first = Operation.objects.filter(run=ended, kind="optim_step").order_by("seq")[0]
    before = Operation.objects.filter(run=ended, kind="forward_backward", seq__lt=first.seq)
    assert list(before.values_list("forward_only", flat=True).order_by("-seq"))[:2] == [False, True]


@pytest.mark.parametrize("moment", [2, 11])
def test_a_driver_that_was_killed_finds_the_reference_in_the_log(
    actor: Actor, pairs: DatasetVersion, moment: int
) -> None:
    undisturbed = drive(make_dpo_run(actor, pairs))
    run, device = make_dpo_run(actor, pairs), make_device("w2")
    with pytest.raises(ProcessKilled):
        drive(run, TurnWaiter(device=device, kill_recipe_at=moment))
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, TurnWaiter(device=device), driver="d2")
    assert ended.status == Status.DONE
    for key in ("dpo/loss", "dpo/margin", "held_out/accuracy"):
        assert read_curve(ended, key) == pytest.approx(read_curve(undisturbed, key), abs=1e-5)
    assert list_saved(ended) == list_saved(undisturbed)
    lines = list(LogLine.objects.filter(run=ended).values_list("text", flat=True))
    assert len(lines) == len(set(lines))
    assert count_operations(ended) == count_operations(undisturbed)


def count_operations(run: Run) -> int:
    return Operation.objects.filter(run=run).count()


def test_rows_that_are_no_pairs_end_the_run_with_a_sentence(
    actor: Actor, pairs: DatasetVersion, tmp_path: Path
) -> None:
    run = make_dpo_run(actor, pairs)
    row = {"messages": [{"role": "user", "content": "Why?"}]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    ended = drive(run)
    assert ended.status == Status.FAILED
    assert "row 1 is no preference pair" in ended.error


def test_a_reward_model_is_measured_before_its_first_step_and_after_a_kill(
    actor: Actor, pairs: DatasetVersion
) -> None:
    undisturbed = drive(make_dpo_run(actor, pairs, "reward_model"))
    assert (undisturbed.status, undisturbed.error) == (Status.DONE, "")
    run, device = make_dpo_run(actor, pairs, "reward_model"), make_device("w2")
    with pytest.raises(ProcessKilled):
        drive(run, TurnWaiter(device=device, kill_recipe_at=5))
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, TurnWaiter(device=device), driver="d2")
    for key in ("loss", "held_out_loss", "held_out/accuracy", "comparison/accuracy"):
        assert read_curve(ended, key) == pytest.approx(read_curve(undisturbed, key), rel=1e-4)
    assert list(read_curve(ended, "held_out/accuracy")) == [0, 2, 4]
    assert count_operations(ended) == count_operations(undisturbed)


def test_a_reward_model_pins_comparisons_of_pairs_it_does_not_learn_from(
    actor: Actor, pairs: DatasetVersion
) -> None:
    run = make_dpo_run(actor, pairs, "reward_model")
    Run.objects.filter(pk=run.pk).update(config=run.config | {"sampling": {"every": 4}})
    ended = drive(run)
    asked = [prompt[0]["content"] for prompt in ended.config["sampling"]["prompts"]]
    assert len(asked) == 4
    assert all(text.endswith("Which answer is better, A or B?") for text in asked)
    # What is chosen stands first and second in turn.
    first, second = (text.split("\n\n")[1:3] for text in asked[:2])
    assert int(first[0][3:]) < int(first[1][3:])
    assert int(second[0][3:]) > int(second[1][3:])


@pytest.mark.parametrize("rank", [4, 0])
def test_a_branch_is_measured_against_what_it_branches_from(
    actor: Actor, pairs: DatasetVersion, rank: int
) -> None:
    rate = 0.002 if rank else 0.0002
    first = drive(make_dpo_run(actor, pairs, rank=rank, learning_rate=rate))
    learned = Checkpoint.objects.get(run=first, kind="training")
    branch = drive(make_dpo_run(actor, pairs, parent=learned, rank=rank, learning_rate=rate))
    assert (branch.status, branch.error) == (Status.DONE, "")
    assert read_curve(branch, "dpo/loss")[1] == pytest.approx(0.693147, abs=1e-4)
    before, after = (read_curve(run, "held_out/preferred") for run in (first, branch))
    assert before[0] < 0.2
    assert after[0] == pytest.approx(before[4], abs=0.01)
