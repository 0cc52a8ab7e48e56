"""The settings of reinforcement learning with rewards, checked field by field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from training.errors import InvalidInput
from training.recipes.config import SHARED_CHECKS, RecipeConfig, Work
from training.recipes.fields import Check, check_fields, one_of, optional, real, whole, yes_or_no
from training.recipes.graders import check_graders, text
from training.requests import LOSS_INPUTS, MASK, RATIO_BOUNDS, TEMPERATURE

PolicyLoss = Literal["importance_sampling", "ppo", "cispo", "dapo", "gspo"]
Normalization = Literal["mean", "std"]
LOSSES: tuple[PolicyLoss, ...] = ("importance_sampling", "ppo", "cispo", "dapo", "gspo")
NORMALIZATIONS: tuple[Normalization, ...] = ("mean", "std")
PREFERENCE = "preference"  # the grader that is a reward model
MAX_GRADERS = 8
MAX_STALE = 16
MAX_ANSWERS = 32_768  # of a batch: all are asked before the first is waited for
MAX_COMPARISONS = 32_768  # of a batch, each two questions to the reward model


def check_rewards(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    """Graders, each with its `weight` in the reward; one of them may be a reward model."""
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInput(f"{name} is not a list of graders: give at least one")
    if len(value) > MAX_GRADERS:
        raise InvalidInput(f"{name} has {len(value)} graders: give at most {MAX_GRADERS}")
    models = [each for each in value if is_preference(each)]
    others = [each for each in value if not is_preference(each)]
    checked = [check_preference(name, each) for each in models[:1]]
    if len(models) > 1:
        raise InvalidInput(f"{name} has {len(models)} reward models: give one")
    checked += check_graders(others) if others else []
    return tuple({"weight": 1.0, **each} for each in checked)


def is_preference(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("name") == PREFERENCE


def check_preference(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value[key] for key in value if key != "name"}
    checked = check_fields(own, PREFERENCE_CHECKS, name=f"the {PREFERENCE} grader of {name}")
    if "checkpoint" not in checked:
        raise InvalidInput(f"the {PREFERENCE} grader needs the checkpoint of a reward model")
    return {"name": PREFERENCE, **checked}


PREFERENCE_CHECKS: Mapping[str, Check] = {"checkpoint": text(200), "weight": real(-1000, 1000)}
POLICY_CHECKS: Mapping[str, Check] = {
    **SHARED_CHECKS,
    "group_size": whole(2, 256),
    "loss": one_of(LOSSES),
    "clip_low": optional(real(0, 1)),
    "clip_high": optional(real(1, 100)),
    "kl_coefficient": real(0, 100),
    "temperature": real(0, 10, above=True),
    "max_tokens": whole(1, 32_768),
    "advantage_normalization": one_of(NORMALIZATIONS),
    "remove_constant_reward_groups": yes_or_no,
    "num_substeps": whole(1, 64),
    "max_steps_off_policy": whole(0, MAX_STALE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig(RecipeConfig):
    """What all recipes that learn from their own samples share.

    A step is an optimizer step; `num_substeps` of them learn from one batch of groups.
    """

    CHECKS: ClassVar[Mapping[str, Check]] = POLICY_CHECKS
    TITLE: ClassVar[str] = "reinforcement learning"

    learning_rate: float = 4e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    group_size: int = 8
    loss: PolicyLoss = "importance_sampling"
    clip_low: float | None = None  # bounds of the ratio; None: what the loss has by itself
    clip_high: float | None = None
    kl_coefficient: float = 0.0
    temperature: float = 1.0
    max_tokens: int = 256
    advantage_normalization: Normalization = "mean"
    remove_constant_reward_groups: bool = True
    num_substeps: int = 1
    max_steps_off_policy: int = 0  # batches; 0: each is sampled from the newest weights

    def check_size(self) -> None:
        answers = self.batch_size * self.group_size
        if answers > MAX_ANSWERS:
            raise InvalidInput(
                f"a batch would have {answers:,} answers: lower batch_size or group_size until it"
                f" has at most {MAX_ANSWERS:,}"
            )

    @property
    def bounds(self) -> dict[str, float | str]:
        given = dict(zip(RATIO_BOUNDS, (self.clip_low, self.clip_high), strict=True))
        return {key: value for key, value in given.items() if value is not None}

    @property
    def loss_config(self) -> dict[str, float | str]:
        """What learns is the policy that was drawn from, at its temperature."""
        own: dict[str, float | str] = {TEMPERATURE: self.temperature}
        return self.bounds if self.temperature == 1.0 else self.bounds | own

    @property
    def asks_ratio_mask(self) -> bool:
        return MASK in LOSS_INPUTS[self.loss].required

    def check_loss(self) -> None:
        """Raise InvalidInput where a bound is given that the loss does not have, or a batch is one
        that no server answers."""
        self.check_size()
        if self.bounds and not LOSS_INPUTS[self.loss].config:
            raise InvalidInput(
                f"{self.loss} clips nothing: leave clip_low and clip_high out, or choose ppo"
            )

    def count_batches(self, num_train: int) -> int:
        if self.steps is not None:
            return -(-self.steps // self.num_substeps)
        return RecipeConfig.count_steps(self, num_train)

    def count_steps(self, num_train: int) -> int:
        return self.count_batches(num_train) * self.num_substeps

    def estimate_work(self, *, row_tokens: float, longest_row: float) -> Work:
        answers = self.batch_size * self.group_size
        return Work(
            tokens=answers * (row_tokens + self.max_tokens), longest=longest_row + self.max_tokens
        )

    def is_checkpoint_due(self, number: int, *, num_steps: int) -> bool:
        return any(
            RecipeConfig.is_checkpoint_due(self, each, num_steps=num_steps)
            for each in self._list_covered(number)
        )

    def is_evaluation_due(self, number: int, *, num_steps: int) -> bool:
        return any(
            RecipeConfig.is_evaluation_due(self, each, num_steps=num_steps)
            for each in self._list_covered(number)
        )

    def is_sampling_due(self, number: int, *, num_steps: int) -> bool:
        return any(
            RecipeConfig.is_sampling_due(self, each, num_steps=num_steps)
            for each in self._list_covered(number)
        )

    def _list_covered(self, number: int) -> range:
        """Things happen between batches only: what was due within one is due behind it."""
        return range(max(number - self.num_substeps + 1, min(number, 1)), number + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RlConfig(PolicyConfig):
    """`batch_size` prompts a batch, each answered `group_size` times."""

    CHECKS: ClassVar[Mapping[str, Check]] = {**POLICY_CHECKS, "graders": check_rewards}

    graders: tuple[Mapping[str, Any], ...] = ({"name": "exact_match", "weight": 1.0},)

    @classmethod
    def from_dict(cls, data: Any) -> "RlConfig":
        config = super(RlConfig, cls).from_dict(data)
        config.check_loss()
        return config

    def check_size(self) -> None:
        PolicyConfig.check_size(self)
        comparisons = self.batch_size * self.group_size * (self.group_size - 1)
        if comparisons > MAX_COMPARISONS and any(map(is_preference, self.graders)):
            raise InvalidInput(
                f"the reward model would compare {comparisons:,} pairs of answers a batch: lower"
                f" batch_size or group_size until it is at most {MAX_COMPARISONS:,}"
            )
