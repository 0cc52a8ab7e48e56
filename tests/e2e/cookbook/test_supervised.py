"""Supervised recipes, stock: their loss falls, and the server drew the same curve."""

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, Outcome, check_run, read_lines
from tests.e2e.cookbook.hub import BASE, CHAT, make_chats, write_rows

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPES = "tinker_cookbook.recipes"


def check_loss(outcome: Outcome) -> None:
    """It falls, and is the same number on both sides."""
    losses = outcome.read_curve("train_mean_nll")
    assert losses[-1] < 0.9 * losses[0]
    drawn = [value for _, value, _ in outcome.series["loss"]]
    assert drawn == pytest.approx(losses, rel=1e-4)


def test_chat_sft_learns_a_local_file(cookbook: Cookbook, boxed: Outcome) -> None:
    check_run(boxed, "recipe_chat_sl", steps=20)
    check_loss(boxed)
    assert boxed.read_curve("train_mean_nll")[-1] < 0.3
    assert (boxed.run["status"], boxed.run["rank"]) == ("done", 16)
    assert boxed.run["config"]["renderer_name"] == "qwen3_instruct"
    names = ("000008", "000016", "final")
    kinds = ("weights", "sampler_weights")
    expected = {f"{kind}/{name}" for kind in kinds for name in names}
    assert cookbook.list_checkpoints(boxed) == expected


def test_the_basic_recipe_evaluates_as_it_trains(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.sl_basic", "lora_rank=8", "learning_rate=5e-3", "max_steps=2", "eval_every=1"
    )
    check_run(outcome, "recipe_sl_basic", steps=2)
    check_loss(outcome)
    held_out = outcome.read_curve("test/nll")
    assert held_out[1] < held_out[0]
    assert outcome.run["status"] == "done"


def test_the_minimal_loop_saves_its_state_on_the_way(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.sl_loop",
        "lora_rank=8",
        "learning_rate=5e-3",
        "batch_size=32",
        "max_steps=3",
        "save_every=2",
    )
    check_run(outcome, "recipe_sl_loop", steps=3)
    check_loss(outcome)
    assert "weights/000002" in cookbook.list_checkpoints(outcome)


def test_chat_sft_trains_on_a_data_set_of_the_hub(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.chat_sl.train",
        f"model_name={BASE}",
        "dataset=no_robots",
        "train_on_what=last_assistant_message",
        "lora_rank=8",
        "learning_rate=5e-3",
        "batch_size=32",
        "max_steps=3",
        "eval_every=0",
    )
    check_run(outcome, "recipe_chat_sl", steps=3)
    check_loss(outcome)


def test_reasoning_traces_are_streamed(cookbook: Cookbook) -> None:
    outcome = cookbook.train(
        f"{RECIPES}.distillation.off_policy_reasoning",
        f"model_name={BASE}",
        "renderer_name=role_colon",
        "lora_rank=8",
        "batch_size=16",
        "max_steps=3",
        "buffer_size=64",
        "max_prompts=64",
        "eval_every=0",
    )
    check_run(outcome, "recipe_distillation_off_policy_reasoning", steps=3)
    check_loss(outcome)


def test_a_prompt_is_distilled(cookbook: Cookbook) -> None:
    """A teacher with the long prompt labels sentences; a student learns them without it."""
    labels = cookbook.make_folder().with_suffix(".jsonl")
    told = cookbook.run(f"{RECIPES}.prompt_distillation.create_data", f"output_file={labels}")
    assert "Loaded 4 sentences" in told
    # Nobody expects the tiny teacher to follow two pages of instructions: its rows may be few.
    rows = read_lines(labels) + list(make_chats())[:64]
    outcome = cookbook.train(
        f"{RECIPES}.prompt_distillation.train",
        f"model_name={CHAT}",
        f"file_path={write_rows(labels, rows)}",
        "lora_rank=8",
        "learning_rate=5e-3",
        "num_epochs=2",
        "batch_size=32",
        "eval_every=0",
    )
    check_run(outcome, "recipe_prompt_distillation", steps=4)
    check_loss(outcome)
