"""A recipe that was killed, and begun again with the same command."""

from pathlib import Path

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, Outcome, check_run
from tests.e2e.cookbook.hub import BASE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
KINDS = ("weights", "sampler_weights")
COMMON = [f"model_name={BASE}", "lora_rank=8", "learning_rate=3e-3", "batch_size=32"]
LOOP = ["tinker_cookbook.recipes.sl_loop", "max_steps=8", "save_every=2", *COMMON]
ROLLING = [
    "tinker_cookbook.recipes.chat_sl.train",
    "dataset=no_robots",
    "train_on_what=last_assistant_message",
    "num_epochs=2",
    "save_every=8",
    "rolling_save_every=1",
    "eval_every=0",
    "behavior_if_log_dir_exists=resume",
    *COMMON,
]


def kill_at(cookbook: Cookbook, folder: Path, step: int, command: list[str]) -> Outcome:
    target, *flags = command
    log, pid = cookbook.begin(target, f"log_path={folder}", *flags)
    cookbook.kill_when(f"Step {step} ", log, pid)
    return cookbook.read_outcome(folder)


def resume(cookbook: Cookbook, folder: Path, killed: Outcome, command: list[str]) -> Outcome:
    """In another run, since the recipe is another program: with the optimizer of the first."""
    resumed = cookbook.train_in(folder, *command)
    assert resumed.run["id"] != killed.run["id"]
    assert resumed.run["with_optimizer"]
    begun = cookbook.api.get(f"/rest/checkpoints/{resumed.run['parent']}").json()
    assert begun["tinker_path"] == killed.state_path
    return resumed


def test_a_killed_loop_goes_on_as_if_nothing_had_been(cookbook: Cookbook) -> None:
    quiet = cookbook.train(*LOOP)
    folder = cookbook.make_folder()
    killed = kill_at(cookbook, folder, 5, LOOP)
    assert killed.checkpoints[-1]["batch"] in (4, 6)
    resumed = resume(cookbook, folder, killed, LOOP)
    steps = 8 - killed.checkpoints[-1]["batch"]
    check_run(resumed, "recipe_sl_loop", steps=steps)
    # Weights, optimizer and place in the data: the last rows are those of the second program.
    expected = quiet.read_curve("train_mean_nll")[-steps:]
    assert resumed.read_curve("train_mean_nll")[-steps:] == pytest.approx(expected, rel=1e-4)


def test_a_rolling_checkpoint_lasts_until_the_next_one(cookbook: Cookbook) -> None:
    folder = cookbook.make_folder()
    killed = kill_at(cookbook, folder, 10, ROLLING)
    rolling = killed.checkpoints[-1]
    assert rolling["name"] > "000008"
    # Of the rolling ones, the one that was on its way out may still be there.
    left = cookbook.list_checkpoints(killed)
    assert {f"{kind}/000008" for kind in KINDS} < left
    assert f"weights/{rolling['name']}" in left
    assert len(left) <= 4
    resumed = resume(cookbook, folder, killed, ROLLING)
    assert resumed.run["status"] == "done"
    assert {row["step"] for row in resumed.metrics} == set(range(18))
    kept = {f"{kind}/{name}" for kind in KINDS for name in ("000016", "final")}
    assert cookbook.list_checkpoints(resumed) == kept
