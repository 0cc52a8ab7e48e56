"""Distillation, stock: the divergence from a teacher is measured, and is what teaches."""

from pathlib import Path

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, Outcome, check_run
from tests.e2e.cookbook.hub import BASE, CHAT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPES = "tinker_cookbook.recipes.distillation"


def test_a_student_comes_closer_to_a_trained_teacher(cookbook: Cookbook, boxed: Outcome) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.on_policy_distillation",
        f"model_name={CHAT}",
        f"teacher_model={CHAT}",
        f"teacher_checkpoint={boxed.sampler_path}",
        "dataset=deepmath",
        "groups_per_batch=8",
        "group_size=8",
        "lora_rank=8",
        "learning_rate=1e-3",
        "max_tokens=12",
        "eval_every=0",
        "max_steps=6",
    )
    check_run(outcome, "recipe_distillation_on_policy", steps=6)
    divergences = outcome.read_curve("teacher_kl")
    assert divergences[0] > 1
    assert min(divergences[3:]) < 0.9 * divergences[0]
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5


def test_each_of_two_teachers_judges_its_own_prompts(cookbook: Cookbook, boxed: Outcome) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.on_policy_multi_teacher",
        f"model_name={CHAT}",
        f"deepmath_teacher_model={BASE}",
        f"tulu3_teacher_model={CHAT}",
        f"tulu3_teacher_checkpoint={boxed.sampler_path}",
        "deepmath_groups_per_batch=4",
        "tulu3_groups_per_batch=4",
        "group_size=2",
        "lora_rank=8",
        "max_tokens=12",
        "eval_every=0",
        "max_steps=1",
    )
    check_run(outcome, "recipe_distillation_on_policy_multi_teacher", steps=1)
    # The first teacher is the student itself, the second was trained on other answers.
    assert outcome.read_curve("teacher_kl/dataset_0")[0] == pytest.approx(0, abs=1e-4)
    assert outcome.read_curve("teacher_kl/dataset_1")[0] > 1


def test_a_students_targets_are_the_teachers_likeliest_tokens(
    cookbook: Cookbook, boxed: Outcome, boxed_rows: Path
) -> None:
    outcome = cookbook.train(
        "distill.py",
        f"model_name={CHAT}",
        "renderer_name=qwen3_instruct",
        f"rows={boxed_rows}",
        f"teacher={boxed.sampler_path}",
    )
    check_run(outcome, "off_policy_distillation", steps=4)
    losses = outcome.read_curve("train/loss:sum")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("reverse", [True, False])
def test_a_model_teaches_itself_from_examples(cookbook: Cookbook, reverse: bool) -> None:
    """The teacher is the model itself with the right answer in its prompt."""
    outcome = cookbook.train(
        "tinker_cookbook.recipes.sdft.train",
        f"model_name={CHAT}",
        "groups_per_batch=8",
        "lora_rank=8",
        "topk=4",
        f"reverse={reverse}",
        "teacher_sync_every=1",
        "learning_rate=1e-3",
        "max_tokens=12",
        "eval_every=0",
        "max_steps=2",
    )
    check_run(outcome, "recipe_sdft", steps=2)
    assert max(value for _, value, _ in outcome.series["grad_norm"]) > 0
