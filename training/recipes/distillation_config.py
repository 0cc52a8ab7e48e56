"""The settings of distillation: who teaches, and how the student learns from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from training.errors import InvalidInput
from training.recipes.config import Work
from training.recipes.fields import Check, real, whole
from training.recipes.rl_config import POLICY_CHECKS, PolicyConfig
from training.recipes.sft_config import SftConfig

LONGEST_NAME = 200
LONGEST_PROMPT = 100_000


def check_teacher(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise InvalidInput(f"{name} is {value!r:.60}: name a checkpoint or a base model")
    return value.strip()


def check_teacher_prompt(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
        raise InvalidInput(f"{name} is not a text of at most {LONGEST_PROMPT} characters")
    return value.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyDistillationConfig(PolicyConfig):
    """The student samples, and each of its tokens earns what the teacher makes of it: the reverse
    KL to the teacher is all there is of a reward. `teacher` empty: the base model as it is.
    """

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **POLICY_CHECKS,
        "group_size": whole(1, 256),
        "kl_coefficient": real(0, 100, above=True),
        "teacher": check_teacher,
    }
    TITLE: ClassVar[str] = "on-policy distillation"

    learning_rate: float = 1e-4
    group_size: int = 4
    kl_coefficient: float = 1.0
    remove_constant_reward_groups: bool = False
    teacher: str = ""

    @classmethod
    def from_dict(cls, data: Any) -> "OnPolicyDistillationConfig":
        config = super(OnPolicyDistillationConfig, cls).from_dict(data)
        config.check_loss()
        if config.remove_constant_reward_groups:
            raise InvalidInput(
                "remove_constant_reward_groups would drop every group: nothing is graded here"
            )
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig(SftConfig):
    """The teacher answers each prompt first, and the student is fine-tuned on its answers.

    `teacher_prompt` stands before what the teacher is asked, as a system message that the student
    never sees. `teacher` empty: the weights that the run begins with.
    """

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SftConfig.CHECKS,
        "teacher": check_teacher,
        "teacher_prompt": check_teacher_prompt,
        "answers_per_prompt": whole(1, 64),
        "max_tokens": whole(1, 32_768),
        "temperature": real(0, 10),
    }
    TITLE: ClassVar[str] = "off-policy distillation"

    teacher: str = ""
    teacher_prompt: str = ""
    answers_per_prompt: int = 1
    max_tokens: int = 256
    temperature: float = 1.0

    def estimate_work(self, *, row_tokens: float, longest_row: float) -> Work:
        """The answers are not written yet: each may be as long as it is allowed to be."""
        return Work(
            tokens=(row_tokens + self.max_tokens) * self.batch_size,
            longest=longest_row + self.max_tokens,
        )

    def count_steps(self, num_train: int) -> int:
        """`num_train` prompts, each with its answers."""
        return SftConfig.count_steps(self, num_train * self.answers_per_prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyDistillationConfig(DistillationConfig):
    """A stronger model teaches."""

    @classmethod
    def from_dict(cls, data: Any) -> "OffPolicyDistillationConfig":
        config = super(OffPolicyDistillationConfig, cls).from_dict(data)
        if not config.teacher:
            raise InvalidInput("teacher is missing: name a checkpoint or a base model that answers")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDistillationConfig(DistillationConfig):
    """The model learns to do without a prompt what it does with one."""

    TITLE: ClassVar[str] = "prompt distillation"

    @classmethod
    def from_dict(cls, data: Any) -> "PromptDistillationConfig":
        config = super(PromptDistillationConfig, cls).from_dict(data)
        if not config.teacher_prompt:
            raise InvalidInput(
                "teacher_prompt is missing: write what the model is to take to heart"
            )
        return config
