"""The methods that need no code: what each is for, what it learns from, its form and its program.

Who drives a method's runs is registered in `workers.methods`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from training.recipes.config import RecipeConfig
from training.recipes.distillation_config import (
    OffPolicyDistillationConfig,
    OnPolicyDistillationConfig,
    PromptDistillationConfig,
)
from training.recipes.dpo_config import DpoConfig
from training.recipes.reward_model_config import RewardModelConfig
from training.recipes.rl_config import RlConfig
from training.recipes.self_play import SelfPlayConfig
from training.recipes.sft_config import SftConfig
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.datasets.reports import KIND_WORDS
from webapp.runs.distillation_forms import (
    OffPolicyDistillationForm,
    OnPolicyDistillationForm,
    PromptDistillationForm,
)
from webapp.runs.distillation_scripts import write_distillation, write_on_policy
from webapp.runs.forms import LaunchForm, SftForm
from webapp.runs.preference_forms import DpoForm, RewardModelForm
from webapp.runs.preference_scripts import write_dpo, write_reward_model
from webapp.runs.rl_forms import RlForm
from webapp.runs.rl_scripts import write_rl
from webapp.runs.scripts import Program, write_sft
from webapp.runs.self_play_forms import SelfPlayForm
from webapp.runs.self_play_scripts import write_self_play

Kind = DatasetVersion.Kind
PROMPTED = (Kind.PROMPT, Kind.CONVERSATION, Kind.PROMPT_COMPLETION)  # there is something to answer

KIND_NAMES = {kind: words[0].lower() + words[1:] for kind, words in KIND_WORDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One recipe, as people meet it."""

    recipe: str
    label: str
    summary: str  # one sentence: when to choose it
    kinds: tuple[str, ...]  # of datasets that it takes; (): it takes none
    config: type[RecipeConfig]
    form: type[LaunchForm]
    script: Callable[[Program], str]

    @property
    def wanted(self) -> str:
        """What its dataset holds, in words."""
        return " or ".join(KIND_NAMES[kind] for kind in self.kinds)


METHODS: Mapping[str, Method] = {
    method.recipe: method
    for method in (
        Method(
            recipe="sft",
            label="Supervised fine-tuning",
            summary="Shows the model answers to write like, or plain text to read on.",
            kinds=(Kind.CONVERSATION, Kind.PROMPT_COMPLETION, Kind.TEXT),
            config=SftConfig,
            form=SftForm,
            script=write_sft,
        ),
        Method(
            recipe="dpo",
            label="DPO",
            summary="Shows the model two answers at a time, and which one is preferred.",
            kinds=(Kind.PREFERENCE,),
            config=DpoConfig,
            form=DpoForm,
            script=write_dpo,
        ),
        Method(
            recipe="reward_model",
            label="Reward model",
            summary="Teaches a judge to say which of two answers is better.",
            kinds=(Kind.PREFERENCE,),
            config=RewardModelConfig,
            form=RewardModelForm,
            script=write_reward_model,
        ),
        Method(
            recipe="rl",
            label="Reinforcement learning",
            summary="Samples answers in groups, and learns from those that graders reward.",
            kinds=PROMPTED,
            config=RlConfig,
            form=RlForm,
            script=write_rl,
        ),
        Method(
            recipe="self_play",
            label="Self-play",
            summary="Plays a small game against itself, and learns from its wins.",
            kinds=(),
            config=SelfPlayConfig,
            form=SelfPlayForm,
            script=write_self_play,
        ),
        Method(
            recipe="on_policy_distillation",
            label="On-policy distillation",
            summary="The model answers, and a teacher judges each token of it.",
            kinds=PROMPTED,
            config=OnPolicyDistillationConfig,
            form=OnPolicyDistillationForm,
            script=write_on_policy,
        ),
        Method(
            recipe="off_policy_distillation",
            label="Off-policy distillation",
            summary="A teacher answers, and the model learns from its answers.",
            kinds=PROMPTED,
            config=OffPolicyDistillationConfig,
            form=OffPolicyDistillationForm,
            script=write_distillation,
        ),
        Method(
            recipe="prompt_distillation",
            label="Prompt distillation",
            summary="The model learns to do without a prompt what it does with one.",
            kinds=PROMPTED,
            config=PromptDistillationConfig,
            form=PromptDistillationForm,
            script=write_distillation,
        ),
    )
}


def find_method(recipe: str) -> Method:
    if recipe not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"There is no method {recipe!r:.60}: use one of {known}.", field="recipe")
    return METHODS[recipe]


def check_kind(method: Method, version: DatasetVersion | None) -> None:
    """A version that the method cannot read is refused, with what it reads."""
    if version is None:
        if method.kinds:
            raise UserError(
                f"{method.label} learns from {method.wanted}: name a dataset version.",
                field="dataset_version",
            )
    elif not method.kinds:
        raise UserError(
            f"{method.label} learns from no dataset: leave the version out.",
            field="dataset_version",
        )
    elif version.kind not in method.kinds:
        raise UserError(
            f"{version} holds {KIND_NAMES[version.kind]}: {method.label} learns from "
            f"{method.wanted}.",
            field="dataset_version",
        )
