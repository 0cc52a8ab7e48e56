"""Advantages, the penalty and the numbers of a policy, computed by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.recipes.learning import Done, LocalModel, LocalPolicy, LocalSampler
from tests.training.recipes.test_sft import Answer as Pending
from tests.training.recipes.test_sft import FakeModel
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.engine.core import Engine
from training.errors import InvalidInput
from training.model import Future, Sampler
from training.recipes import policy, rl
from training.recipes.grading import Answer, grade_inline
from training.recipes.policy_metrics import describe_groups, describe_reference
from training.recipes.rl_config import RlConfig
from training.recipes.rollouts import (
    Group,
    Prompt,
    Rollout,
    make_datum,
    set_advantages,
    spread_advantages,
)
from training.recipes.steps import Order
from training.types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    SampledSequence,
    SampleOutput,
    SampleRequest,
)

TINY = "tests/assets/tiny-chatml-1m"


def make_rollout(reward: float, num_tokens: int = 2, **changes: Any) -> Rollout:
    return Rollout(
        prompt=(5, 6, 7),
        tokens=list(range(10, 10 + num_tokens)),
        logprobs=[-0.5] * num_tokens,
        text="4",
        is_truncated=False,
        reward=reward,
        scores={"exact_match": reward},
        **changes,
    )


def make_group(*rewards: float) -> Group:
    return Group(rollouts=[make_rollout(reward) for reward in rewards], row=3)


def list_advantages(group: Group) -> list[float]:
    return [rollout.advantage for rollout in group.rollouts]


def test_an_advantage_is_the_reward_against_the_mean_of_its_group() -> None:
    group = make_group(1, 0, 0, 1)
    set_advantages(group, by_std=False)
    assert list_advantages(group) == [0.5, -0.5, -0.5, 0.5]
    group = make_group(1, 0, 0, 0)
    set_advantages(group, by_std=True)
    # The standard deviation of 1, 0, 0, 0 is sqrt(3) / 4.
    assert list_advantages(group) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3], rel=1e-4)


@pytest.mark.parametrize("by_std", [False, True])
def test_a_group_that_earns_all_the_same_prefers_nothing(by_std: bool) -> None:
    group = make_group(0.1 + 0.2, 0.3, 0.3)
    set_advantages(group, by_std=by_std)
    assert group.is_constant
    assert list_advantages(group) == [0.0, 0.0, 0.0]


def test_the_penalty_takes_from_tokens_that_the_reference_finds_less_likely() -> None:
    near = make_rollout(1, reference=[-0.5, -0.5], advantage=0.25)
    far = make_rollout(0, reference=[-2.5, -0.5], advantage=-0.25)
    # Gaps are 0, 0, 2 and 0 nats: their mean is 0.5.
    spread = spread_advantages([near, far], kl_coefficient=0.1)
    assert spread[0] == pytest.approx([0.25 + 0.05, 0.25 + 0.05])
    assert spread[1] == pytest.approx([-0.25 - 0.15, -0.25 + 0.05])
    assert spread_advantages([near, far], kl_coefficient=0) == [[0.25, 0.25], [-0.25, -0.25]]


def test_what_was_drawn_at_another_temperature_is_compared_at_1() -> None:
    rollout = make_rollout(1, own=[-1.0, None], reference=[-1.5, -0.5], advantage=0.0)
    # Gaps are 0.5 and, where the model's own is not known, 0 nats.
    assert spread_advantages([rollout], kl_coefficient=1.0) == [pytest.approx([-0.25, 0.25])]
    assert describe_reference([rollout]) == {"kl/reference": pytest.approx(0.5)}  # of the first
    # Twice as likely at 1 as it was drawn, and half as likely: (2 * 0.3 - 0.5 * 0.3) / 2.5.
    own = [-0.5 + math.log(2), -0.5 - math.log(2)]
    rollout = make_rollout(1, own=own, reference=[own[0] - 0.3, own[1] + 0.3])
    assert describe_reference([rollout]) == {"kl/reference": pytest.approx(0.45 / 2.5)}
    assert not make_request(temperature=1.0).with_both_logprobs
    assert make_request(temperature=0.5).with_both_logprobs


def make_request(**settings: Any) -> SampleRequest:
    config, tokenizer = configure(**settings), ChatTokenizer.load(TINY)
    prepared = rl.prepare(sums(), tokenizer, config)
    questions = rl.Questions(
        prepared=prepared,
        config=config,
        tokenizer=tokenizer,
        reward=reward_matches,
        weights=WEIGHTS,
    )
    return questions.make_request(prepared.train[0], 1, 0, num_samples=2)


def test_a_datum_scores_each_sampled_token_and_nothing_of_the_prompt() -> None:
    datum = make_datum(make_rollout(1, num_tokens=3), [1.0, 2.0, 3.0], scale=0.5)
    assert datum.tokens.tolist() == [5, 6, 7, 10, 11]
    assert datum.inputs["target_tokens"].tolist() == [6, 7, 10, 11, 12]
    assert datum.inputs["advantages"].tolist() == [0, 0, 0.5, 1.0, 1.5]
    assert datum.inputs["logprobs"].tolist() == [0, 0, -0.5, -0.5, -0.5]


def test_metrics_have_the_usual_names_and_hand_computed_values() -> None:
    varied = Group(
        rollouts=[
            make_rollout(1, reference=[-1.0, -0.5]),
            make_rollout(0, num_tokens=4, reference=[-0.5] * 4),
        ],
        born=2,
    )
    constant = make_group(1, 1)
    constant.rollouts[0].is_truncated = True
    constant.born = 4
    metrics = describe_groups([varied, constant], step=4)
    assert metrics == pytest.approx(
        {
            "reward/mean": 0.75,
            "reward/std": 0.75**0.5 / 2,
            "reward/exact_match": 0.75,
            "frac_reward_zero_std": 0.5,
            "completion/length_mean": 2.5,
            "completion/length_max": 4,
            "completion/truncated_share": 0.25,
            "entropy": 0.5,
            "staleness": 1.0,
            "kl/reference": 0.5 / 6,
        }
    )


@dataclass
class ScriptedSampler:
    """Answers a prompt with "0", "1", "2" ... and remembers who asked what about what."""

    tokenizer: ChatTokenizer
    weights: int = 0
    asked: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Future[SampleOutput]:
        self.asked.append((self.weights, about))
        sequences = [
            SampledSequence(
                tokens=[*self.tokenizer.encode(str(number)), 2], logprobs=[-1.0, -0.1],
                stop_reason="stop",
            )
            for number in range(request.num_samples)
        ]  # fmt: skip
        return Done(SampleOutput(sequences=sequences, prompt_logprobs=[-1.5] * 30))


def configure(**settings: Any) -> RlConfig:
    usual = {"batch_size": 2, "group_size": 4, "max_tokens": 4, "held_out_share": 0, "steps": 3}
    return RlConfig.from_dict(usual | settings)


def sums(step: int = 1) -> list[Row]:
    return [
        Row(
            number=number + 1,
            messages=[{"role": "user", "content": f"What is {number // 10} + {number % 10}?"}],
            metadata={"target": str(number // 10 + number % 10)},
        )
        for number in range(0, 100, step)
    ]


WEIGHTS = {"exact_match": 1.0}


def reward_matches(
    _step: int, asked: Sequence[tuple[Prompt, Group]]
) -> list[list[dict[str, float]]]:
    def grade(prompt: Prompt, rollout: Rollout) -> dict[str, float]:
        answer = Answer(messages=prompt.messages, completion=rollout.text, target=prompt.target)
        return {"exact_match": grade_inline({"name": "exact_match"}, answer)}

    return [[grade(prompt, each) for each in group.rollouts] for prompt, group in asked]


@dataclass
class FakePolicyModel(FakeModel):
    """Remembers losses, and that a pass costs nothing."""

    losses: list[str] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)

    def optim_step(self, adam: AdamParams) -> Pending:
        self.verbs.append("optim_step")
        return super().optim_step(adam)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        config: Mapping[str, float | str] | None = None,
        forward_only: bool = False,
    ) -> Pending:
        assert not forward_only
        self.verbs.append("forward_backward")
        self.losses.append(loss_fn)
        self.data.append(data)
        self.configs.append(config)
        metrics = {"loss:sum": 0.25, "clipped:mean": 0.5}
        return Pending(self, "gradient", ForwardBackwardOutput(logprobs=[], metrics=metrics))


@dataclass
class Rig:
    """A recipe over fakes: which weights were asked about which step, and what was learned."""

    config: RlConfig
    model: FakePolicyModel = field(default_factory=FakePolicyModel)
    asked: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    with_reference: bool = False

    def run(self, rows: Sequence[Row], orders: Mapping[int, Order] | None = None) -> list[Any]:
        tokenizer = ChatTokenizer.load(TINY)
        prepared = rl.prepare(rows, tokenizer, self.config)
        questions = rl.Questions(
            prepared=prepared,
            config=self.config,
            tokenizer=tokenizer,
            reward=reward_matches,
            weights=WEIGHTS,
        )

        def publish(step: int) -> Future[Sampler]:
            return Done(ScriptedSampler(tokenizer, step, self.asked))

        reference = ScriptedSampler(tokenizer, -1, self.asked) if self.with_reference else None
        source = policy.Source(ask=questions.ask, publish=publish, reference=reference)
        steps = policy.train(
            self.model,
            self.config,
            source,
            num_batches=prepared.num_batches,
            steer=lambda number: (orders or {}).get(number, Order()),
        )
        return list(steps)


def test_each_batch_is_sampled_from_the_newest_weights() -> None:
    rig = Rig(config=configure())
    steps = rig.run(sums()[:3])
    assert [(weights, about["step"]) for weights, about in rig.asked] == [
        (0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3),
    ]  # fmt: skip
    assert [step.number for step in steps] == [1, 2, 3]
    assert [step.metrics["staleness"] for step in steps] == [0, 0, 0]
    # 0 + 0, 0 + 1 and 0 + 2: one answer of four is right.
    assert [step.metrics["reward/mean"] for step in steps] == [0.25, 0.25, 0.25]
    assert all(step.is_settled for step in steps)
    assert sorted(row for step in steps for row in step.batch.rows) == [1, 1, 2, 2, 3, 3]


def test_batches_ahead_are_asked_for_before_the_last_one_is_learned() -> None:
    rig = Rig(config=configure(max_steps_off_policy=2, steps=4, batch_size=1))
    steps = rig.run(sums()[:3])
    asked = [(weights, about["step"]) for weights, about in rig.asked]
    assert asked == [(0, 1), (0, 2), (0, 3), (1, 4)]
    assert [step.metrics["staleness"] for step in steps] == [0, 1, 2, 2]


def test_the_loss_is_a_mean_over_the_tokens_of_the_batch() -> None:
    rig = Rig(config=configure(loss="ppo", clip_low=0.7, clip_high=1.4))
    rig.run(sums()[:3])
    first = rig.model.data[0]
    assert len(first) == 8  # answers of both prompts
    assert rig.model.configs[0] == {
        "logprobs": "weighted", "clip_low_threshold": 0.7, "clip_high_threshold": 1.4,
    }  # fmt: skip
    advantages = np.concatenate([datum.inputs["advantages"] for datum in first])
    # 16 tokens; a right answer is 0.75 above its group's mean, the others 0.25 below it.
    assert sorted(set(np.round(advantages[advantages != 0] * 16, 6).tolist())) == [-0.25, 0.75]
    assert advantages.sum() == pytest.approx(0, abs=1e-6)


def test_a_constant_group_is_dropped_and_a_batch_of_them_moves_nothing() -> None:
    rig = Rig(config=configure())
    steps = rig.run(sums(11)[7:])  # 7 + 7 and on: none of 0, 1, 2, 3 is right
    assert all(not datum.inputs["advantages"].any() for part in rig.model.data for datum in part)
    assert [adam.learning_rate for adam in rig.model.adams] == [0.0, 0.0, 0.0]
    assert [step.metrics["frac_reward_zero_std"] for step in steps] == [1.0, 1.0, 1.0]
    assert all(group.is_dropped for step in steps for group in step.groups)
    assert not any("loss" in step.metrics for step in steps)


@pytest.mark.parametrize("loss", ["importance_sampling", "gspo"])
def test_the_log_has_the_same_verbs_whatever_was_earned(loss: str) -> None:
    def list_verbs(rows: Sequence[Row], kl_coefficient: float | None = None) -> list[str]:
        constant = {"remove_constant_reward_groups": False}
        rig = Rig(config=configure(loss=loss, num_substeps=2, **constant), with_reference=True)
        rig.run(rows, {n: Order(kl_coefficient=kl_coefficient) for n in range(1, 7)})
        return rig.model.verbs

    earned, nothing = sums()[:3], sums(11)[7:]
    expected = list_verbs(earned)
    assert list_verbs(nothing) == expected
    # A run whose KL coefficient was changed is replayed with the new one from its first step on.
    assert list_verbs(nothing, kl_coefficient=0.5) == expected


def test_a_batch_is_learned_from_in_as_many_steps_as_are_asked() -> None:
    rig = Rig(config=configure(num_substeps=2, steps=3, checkpoint_every=3))
    steps = rig.run(sums()[:3])
    assert [step.number for step in steps] == [2, 4]  # 3 steps are two batches of two
    assert [len(data) for data in rig.model.data] == [4, 4, 4, 4]
    assert len(rig.model.adams) == 4
    # What was due within a batch is due behind it.
    assert [n for n in (2, 4) if rig.config.is_checkpoint_due(n, num_steps=6)] == [4]


def test_gspo_gets_the_mask_of_what_was_sampled() -> None:
    rig = Rig(config=configure(loss="gspo"))
    rig.run(sums()[:3])
    datum = rig.model.data[0][0]
    mask = datum.inputs["sequence_ratio_mask"]
    assert mask.sum() == 2
    assert mask[-2:].tolist() == [1, 1]


def test_the_kl_coefficient_and_the_learning_rate_may_change_from_a_step_on() -> None:
    rig = Rig(config=configure(), with_reference=True)
    steps = rig.run(sums()[:3], {2: Order(kl_coefficient=0.5, learning_rate=0.25)})
    asked = [about["step"] for weights, about in rig.asked if weights == -1]
    assert set(asked) == {2}
    assert ["kl/reference" in step.metrics for step in steps] == [False, True, False]
    # -1 and -0.1 against -1.5 at both tokens.
    assert steps[1].metrics["kl/reference"] == pytest.approx((0.5 + 1.4) / 2)
    assert [adam.learning_rate for adam in rig.model.adams] == [4e-5, 0.25, 4e-5]


def test_nothing_is_left_to_ask() -> None:
    with pytest.raises(InvalidInput, match="3 leave no room for an answer of 4000 tokens"):
        Rig(config=configure(max_tokens=4000)).run(sums()[:3])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"graders": []}, "give at least one"),
        ({"graders": [{"name": "nonsense"}]}, "there is no grader"),
        ({"graders": [{"name": "preference"}]}, "needs the checkpoint of a reward model"),
        ({"graders": [{"name": "exact_match"}] * 2}, "name each grader once"),
        ({"graders": [{"name": "exact_match", "weight": "much"}]}, "weight"),
        ({"loss": "cross_entropy"}, "give one of importance_sampling"),
        ({"clip_high": 1.2}, "importance_sampling clips nothing"),
        ({"group_size": 1}, "group_size is 1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"batch_size": 4096, "group_size": 9}, "a batch would have 36,864 answers"),
        (
            {
                "batch_size": 1024,
                "group_size": 8,
                "graders": [{"name": "preference", "checkpoint": "c"}],
            },
            "would compare 57,344 pairs of answers a batch",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        configure(**changes)


def test_a_config_says_the_same_when_it_is_read_again() -> None:
    graders = [{"name": "numeric", "tolerance": 0.5, "weight": 2}, {"name": "valid_json"}]
    config = configure(graders=graders, loss="dapo")
    assert [each["weight"] for each in config.graders] == [2.0, 1.0]
    written = config.to_dict()
    assert RlConfig.from_dict({key: written[key] for key in written if key != "epochs"}) == config


@pytest.mark.slow
def test_the_reward_of_the_tiny_model_rises(tmp_path: Path) -> None:
    config = configure(
        rank=8, steps=14, batch_size=8, group_size=16, learning_rate=2e-3, warmup_steps=5,
        max_tokens=6, train_unembed=True,
    )  # fmt: skip
    engine = Engine.load(Path(TINY))
    engine.create_adapter("run", config.lora)
    tokenizer = ChatTokenizer.load(TINY)
    prepared = rl.prepare(sums(6), tokenizer, config)
    questions = rl.Questions(
        prepared=prepared,
        config=config,
        tokenizer=tokenizer,
        reward=reward_matches,
        weights=WEIGHTS,
    )
    weights = LocalPolicy(engine, "run", tmp_path)
    source = policy.Source(
        ask=questions.ask, publish=weights.publish, reference=LocalSampler(weights.generator)
    )
    steps = policy.train(LocalModel(engine, "run"), config, source, num_batches=14)
    rewards = [step.metrics["reward/mean"] for step in steps]
    # 256 answers on each side, where the standard error of a mean is below 0.03.
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.12
