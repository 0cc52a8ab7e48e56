"""Conversations of many turns, stock: games, and a model that grades another."""

from pathlib import Path

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, check_run, read_lines
from tests.e2e.cookbook.hub import CHAT, write_rows

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPES = "tinker_cookbook.recipes"
SMALL = ["group_size=2", "batch_size=2", "max_tokens=8", "eval_every=0", "max_steps=1"]


def test_a_number_is_guessed(cookbook: Cookbook) -> None:
    outcome = cookbook.train(f"{RECIPES}.multiplayer_rl.guess_number.train", *SMALL)
    check_run(outcome, "recipe_multiplayer_guess_number", steps=1)
    assert outcome.read_curve("env/all/turns_per_episode") == [10]
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5


def test_another_model_answers_twenty_questions(cookbook: Cookbook) -> None:
    outcome = cookbook.train(f"{RECIPES}.multiplayer_rl.twenty_questions.train", *SMALL)
    check_run(outcome, "recipe_multiplayer_twenty_questions", steps=1)
    assert outcome.read_curve("env/all/turns_per_episode") == [20]
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5


def test_a_model_plays_against_itself(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.multiplayer_rl.text_arena.train",
        "game_name=TicTacToe-v0",
        "batch_size=4",
        "num_train_datapoints=8",
        "num_test_datapoints=2",
        "max_tokens=12",
        "eval_every=1",
        "max_steps=1",
    )
    check_run(outcome, "recipe_multiplayer_text_arena", steps=1)
    # Whoever wins, the other one loses: each pair has rewards to learn from.
    assert outcome.read_curve("env/all/by_group/frac_mixed") == [1]
    assert outcome.series["grad_norm"][0][1] > 0
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5
    assert outcome.read_curve("test/env/all/reward/total")


def test_a_rubric_is_held_up_to_answers_by_another_model(cookbook: Cookbook) -> None:
    cookbook.run(f"{RECIPES}.rubric.generate_data")
    outcome = cookbook.train(
        f"{RECIPES}.rubric.train",
        f"model_name={CHAT}",
        "renderer_name=qwen3_instruct",
        f"grader_llm_name={CHAT}",
        "grader_renderer_name=qwen3_instruct",
        f"test_jsonl_path={write_rubrics(cookbook)}",
        "groups_per_batch=4",
        "train_group_size=4",
        "max_tokens=8",
        "lora_rank=8",
        "eval_every=1",
        "max_steps=1",
    )
    check_run(outcome, "recipe_rubric", steps=1)
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5
    assert outcome.read_curve("env/all/rubric_score")
    assert outcome.read_curve("test/env/all/rubric_score")


def write_rubrics(cookbook: Cookbook) -> Path:
    """A few of the rows that the recipe made: its own test set has a thousand."""
    examples = cookbook.hub / "tinker_cookbook" / "example_data"
    rows = read_lines(examples / "example_rubric_test.jsonl")
    return write_rows(examples / "few.jsonl", rows[:4])


def test_a_tool_is_called_and_its_answer_told(cookbook: Cookbook) -> None:
    """First from chats, then in an environment where the tool is real."""
    outcome = cookbook.train("tools.py", f"model_name={CHAT}")
    check_run(outcome, "tools", steps=2)
    assert max(outcome.read_curve("env/all/calls")) > 0.5
    assert max(outcome.read_curve("env/all/turns_per_episode")) > 1
    assert max(outcome.read_curve("env/all/found")) > 0.5
    assert max(outcome.read_curve("optim/kl_sample_train_v2")) < 1e-5
