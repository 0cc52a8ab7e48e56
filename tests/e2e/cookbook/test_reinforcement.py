"""Reinforcement learning, stock: what was sampled is what is trained, in each of the loops."""

import shutil

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, Outcome, check_run
from tests.e2e.cookbook.hub import CHAT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPES = "tinker_cookbook.recipes"
MATH_ENV = f"{RECIPES}.math_rl.math_env:Gsm8kDatasetBuilder"
LOSSES = ["importance_sampling", "cispo", "gspo", "stable_reinforce"]
# Upstream calls 0.0002 healthy and 0.02 a bug.
HEALTHY_KL = 1e-5
SMALL = ["groups_per_batch=8", "group_size=4", "lora_rank=8", "eval_every=0"]


def check_policy(outcome: Outcome) -> None:
    """The trainer gives the sampler's numbers, and some of the rewards taught it something."""
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < HEALTHY_KL
    assert max(value for _, value, _ in outcome.series["grad_norm"]) > 0


def test_the_basic_recipe_goes_on_from_weights(cookbook: Cookbook, boxed: Outcome) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.rl_basic",
        f"model_name={CHAT}",
        f"dataset_builder={MATH_ENV}",
        f"dataset_builder.model_name_for_tokenizer={CHAT}",
        "dataset_builder.renderer_name=qwen3_instruct",
        "dataset_builder.batch_size=8",
        "dataset_builder.group_size=4",
        f"load_checkpoint_path={boxed.state_path}",
        "max_tokens=16",
        "max_steps=2",
    )
    check_run(outcome, "recipe_rl_basic", steps=2)
    check_policy(outcome)
    assert outcome.run["status"] == "done"
    # Without those weights nothing is put into a box.
    assert max(outcome.read_curve("env/all/correct")) > 0
    assert outcome.run["parent"] is not None
    assert outcome.run["rank"] == boxed.run["rank"]


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_the_minimal_loop_goes_on_with_each_loss(
    cookbook: Cookbook, boxed: Outcome, loss_fn: str
) -> None:
    """It takes up a folder where another recipe left a checkpoint, optimizer and all."""
    folder = cookbook.make_folder()
    folder.mkdir()
    shutil.copy(boxed.folder / "checkpoints.jsonl", folder)
    outcome = cookbook.train_in(
        folder,
        f"{RECIPES}.rl_loop",
        f"model_name={CHAT}",
        f"loss_fn={loss_fn}",
        "batch_size=16",
        "group_size=4",
        "max_tokens=16",
        "max_steps=2",
    )
    check_run(outcome, "recipe_rl_loop", steps=2)
    assert max(outcome.read_curve("reward/total")) > 0
    assert outcome.run["with_optimizer"]


def test_mathematics_is_trained_with_several_steps_a_batch(
    cookbook: Cookbook, boxed: Outcome
) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.math_rl.train",
        f"model_name={CHAT}",
        "env=gsm8k",
        f"load_checkpoint_path={boxed.state_path}",
        "loss_fn=ppo",
        'loss_fn_config={"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}',
        "num_substeps=2",
        "compute_post_kl=True",
        "max_tokens=16",
        "max_steps=2",
        *SMALL,
    )
    check_run(outcome, "recipe_math_rl", steps=4)
    check_policy(outcome)
    assert max(outcome.read_curve("env/all/correct")) > 0
    assert len(outcome.read_curve("kl_pre_post_v2")) == 2


def test_arithmetic_is_trained_with_the_recipes_own_loss(cookbook: Cookbook) -> None:
    """Nothing of it comes from a hub, and nothing but its sizes is said to it."""
    outcome = cookbook.train(
        f"{RECIPES}.math_rl.train", f"model_name={CHAT}", "max_steps=2", *SMALL
    )
    check_run(outcome, "recipe_math_rl", steps=2)
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < HEALTHY_KL
    assert len(outcome.read_curve("env/all/reward/total")) == 2


def test_minibatches_train_while_the_rest_is_sampled(cookbook: Cookbook, boxed: Outcome) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.math_rl.train",
        f"model_name={CHAT}",
        "env=gsm8k",
        f"load_checkpoint_path={boxed.state_path}",
        "max_tokens=16",
        "loss_fn=cispo",
        "stream_minibatch_config.groups_per_batch=8",
        "stream_minibatch_config.num_minibatches=2",
        "max_steps=2",
        *SMALL,
    )
    check_run(outcome, "recipe_math_rl", steps=2)
    check_policy(outcome)
    assert outcome.run["status"] == "done"


def test_sampling_runs_ahead_of_training(cookbook: Cookbook, boxed: Outcome) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.math_rl.train",
        f"model_name={CHAT}",
        "env=gsm8k",
        f"load_checkpoint_path={boxed.state_path}",
        "max_steps_off_policy=1",
        "learning_rate=1e-3",
        "max_tokens=16",
        "max_steps=3",
        *SMALL,
    )
    check_run(outcome, "recipe_math_rl", steps=3)
    assert max(outcome.read_curve("async/staleness_max")) == 1
    # The first batch is on policy; later ones were sampled a step before.
    divergences = outcome.read_curve("optim/kl_sample_train_v2")
    assert divergences[0] < HEALTHY_KL < max(divergences)
