"""Learning from preferences, stock: DPO, shorter answers, and the three stages of RLHF."""

import time

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, check_run
from tests.e2e.cookbook.hub import CHAT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPES = "tinker_cookbook.recipes.preference"


def test_dpo_prefers_the_chosen_answers(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.dpo.train",
        f"model_name={CHAT}",
        "learning_rate=1e-3",
        "batch_size=32",
        "max_steps=3",
    )
    check_run(outcome, "recipe_preference_dpo", steps=3)
    losses = outcome.read_curve("dpo_loss")
    # Before the first step policy and reference are one: log 2, to the last digit.
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < 0.6
    assert outcome.read_curve("accuracy")[-1] > 0.9


def test_answers_are_compared_with_one_another(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.shorter.train",
        "batch_size=4",
        "group_size=4",
        "max_tokens=16",
        "learning_rate=1e-3",
        "eval_every=0",
        "max_steps=2",
    )
    check_run(outcome, "recipe_preference_shorter", steps=2)
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5
    assert max(outcome.read_curve("kl_pre_post_v2")) > 1e-5
    assert max(value for _, value, _ in outcome.series["grad_norm"]) > 0


def test_rlhf_goes_through_its_three_stages(cookbook: Cookbook) -> None:
    name = f"tiny{time.time_ns()}"
    cookbook.run(
        f"{RECIPES}.rlhf.rlhf_pipeline",
        f"short_name={name}",
        "lora_rank=8",
        "batch_size=32",
        "max_length=256",
        "sft_learning_rate=5e-3",
        "rm_learning_rate=5e-3",
        "rl_max_tokens=16",
        "rl_group_size=2",
        "eval_every=0",
        "max_steps=3",
    )
    stages = {
        stage: cookbook.read_outcome(cookbook.folder / "runs" / f"rlhf-{name}" / stage)
        for stage in ("sft", "rm", "rl")
    }
    for name, outcome in stages.items():
        check_run(outcome, f"recipe_preference_rlhf_{name}", steps=3)
        assert outcome.run["status"] == "done"
    for name in ("sft", "rm"):
        losses = stages[name].read_curve("train_mean_nll")
        assert losses[-1] < 0.7 * losses[0]
    # The policy began at the first stage's weights; the second stage's judged it.
    rl = stages["rl"]
    begun = cookbook.api.get(f"/rest/checkpoints/{rl.run['parent']}").json()
    assert begun["tinker_path"] == stages["sft"].state_path
    assert max(rl.read_curve("optim/kl_sample_train_v2")) < 1e-5
