"""Settings of an SFT run, right and wrong."""

import json
from typing import Any

import pytest

from training.errors import InvalidInput
from training.recipes.config import SamplingConfig
from training.recipes.sft_config import SftConfig
from training.types import LoraSpec


def test_defaults_are_one_epoch_at_rank_32() -> None:
    config = SftConfig.from_dict({})
    assert (config.rank, config.epochs, config.steps, config.schedule) == (32, 1.0, None, "linear")
    assert config.lora == LoraSpec(rank=32)


def test_a_config_survives_json() -> None:
    config = SftConfig.from_dict(
        {
            "rank": 8,
            "steps": 40,
            "sampling": {
                "prompts": ["Hi", [{"role": "user", "content": "Ho"}]],
                "every": 5,
                "temperature": 1,
            },
        }
    )
    assert config.sampling == SamplingConfig(
        prompts=("Hi", ({"role": "user", "content": "Ho"},)), every=5, temperature=1.0
    )
    assert SftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whole_numbers_may_come_as_floats_of_json() -> None:
    assert SftConfig.from_dict({"steps": 40.0}).steps == 40


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"rank": -1}, "rank is -1: give a whole number from 0 to 512"),
        ({"rank": 10_000}, "rank is 10000: give a whole number from 0 to 512"),
        ({"rank": 0, "alpha": 16}, "alpha is a setting of adapters, and rank 0 trains all weights"),
        ({"rank": 0, "train_mlp": False}, "train_mlp is a setting of adapters"),
        ({"rank": 1.5}, "rank is 1.5: give a whole number"),
        ({"rank": True}, "rank is True: give a whole number"),
        ({"rank": "8"}, "rank is '8': give a whole number"),
        ({"rank": None}, "rank is None: give a whole number"),
        ({"alpha": 0}, "alpha is 0: give a number above 0"),
        ({"learning_rate": 0}, "learning_rate is 0: give a number above 0 and up to 1"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001: give a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: give a number"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: give a number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': give a number"),
        ({"schedule": "step"}, "schedule is 'step': give one of constant, linear, cosine"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"batch_size": 0}, "batch_size is 0: give a whole number from 1 to 4096"),
        ({"epochs": 0}, "epochs is 0: give a number above 0"),
        ({"epochs": 10**400}, "give a number above 0 and up to 1000"),
        ({"steps": 0}, "steps is 0: give a whole number from 1"),
        ({"epochs": 1, "steps": 5}, "epochs and steps are both given"),
        ({"held_out_share": 1}, "held_out_share is 1: give a number from 0 to 0.9"),
        ({"seed": -1}, "seed is -1"),
        ({"max_length": 1}, "max_length is 1: give a whole number from 8"),
        ({"overlong": "split"}, "overlong is 'split': give one of truncate, drop"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"evaluate_every": 0.5}, "evaluate_every is 0.5"),
        ({"train_mlp": 1}, "train_mlp is 1: give true or false"),
        ({"train_mlp": False, "train_attn": False}, "are all off: nothing learns"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"grad_clip_norm": -1}, "grad_clip_norm is -1"),
        ({"lr": 1}, "the SFT config has no field 'lr'; it has alpha, batch_size"),
        ({"sampling": []}, "sampling is not an object"),
        ({"sampling": {"prompts": "Hi"}}, "sampling.prompts is not a list of prompts"),
        ({"sampling": {"prompts": [""]}}, r"sampling.prompts\[0\] is empty"),
        ({"sampling": {"prompts": [[{"role": "user"}]]}}, r"sampling.prompts\[0\] has a message"),
        ({"sampling": {"prompts": ["x"] * 51}}, "has 51 prompts: give at most 50"),
        ({"sampling": {"every": -1}}, "sampling.every is -1"),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens is 0"),
        ({"sampling": {"temperature": -0.1}}, "sampling.temperature is -0.1"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_may_be(given: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        SftConfig.from_dict(given)


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the SFT config is not an object"):
        SftConfig.from_dict("rank=8")


def rates(**settings: Any) -> list[float]:
    config = SftConfig.from_dict({"learning_rate": 1.0, "steps": 6, **settings})
    return [round(config.adam_at(index, num_steps=6).learning_rate, 3) for index in range(6)]


def test_schedules_start_at_the_peak_and_end_above_zero() -> None:
    assert rates(schedule="constant") == [1.0] * 6
    assert rates(schedule="linear") == [1.0, 0.833, 0.667, 0.5, 0.333, 0.167]
    assert rates(schedule="cosine") == [1.0, 0.933, 0.75, 0.5, 0.25, 0.067]


def test_a_warm_up_rises_to_the_peak() -> None:
    assert rates(schedule="constant", warmup_steps=3) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(schedule="linear", warmup_steps=2) == [0.333, 0.667, 1.0, 0.75, 0.5, 0.25]


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    assert rates(warmup_steps=11) == [0.083, 0.167, 0.25, 0.333, 0.417, 0.5]


def test_a_steered_learning_rate_is_the_schedules_new_peak() -> None:
    config = SftConfig.from_dict({"learning_rate": 0.1, "steps": 4, "weight_decay": 0.01})
    adam = config.adam_at(2, num_steps=4, learning_rate=0.8)
    assert (adam.learning_rate, adam.weight_decay, adam.grad_clip_norm) == (0.4, 0.01, 1.0)


def test_things_are_due_at_their_cadence_and_at_the_end() -> None:
    config = SftConfig.from_dict(
        {"checkpoint_every": 3, "evaluate_every": 2, "sampling": {"prompts": ["Hi"], "every": 4}}
    )
    due = {
        name: [n for n in range(8) if getattr(config, f"is_{name}_due")(n, num_steps=7)]
        for name in ("checkpoint", "evaluation", "sampling", "anything")
    }
    assert due == {
        "checkpoint": [3, 6, 7],
        "evaluation": [2, 4, 6, 7],
        "sampling": [0, 4, 7],
        "anything": [0, 2, 3, 4, 6, 7],
    }


def test_zero_means_never_but_the_end_is_always_saved() -> None:
    config = SftConfig.from_dict({"evaluate_every": 0})
    assert [n for n in range(8) if config.is_anything_due(n, num_steps=7)] == [7]
    assert config.is_checkpoint_due(7, num_steps=7)
    assert not config.is_evaluation_due(7, num_steps=7)
