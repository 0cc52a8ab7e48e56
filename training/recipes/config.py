"""The settings that every recipe has, checked field by field, and what a step of one takes."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import cos, pi
from typing import Any, ClassVar, Literal, Self

from training.data.batches import AskedT, HeldOutBy, count_steps, name_split, split_held_out
from training.errors import InvalidInput
from training.recipes.early_stop import EarlyStop, check_early_stop
from training.recipes.fields import Check, check_fields, one_of, optional, real, whole, yes_or_no
from training.types import LORA_ALPHA, MAX_RANK, AdamParams, LoraSpec

Schedule = Literal["constant", "linear", "cosine"]
MAX_PROMPTS = 50
FULL_SHARE = 0.1  # an adapter learns best at about ten times what all weights take
PARTS = ("train_mlp", "train_attn", "train_unembed", "train_embed")
OF_ADAPTERS = ("alpha", *PARTS)


def check_prompts(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{name} is not a list of prompts")
    if len(value) > MAX_PROMPTS:
        raise InvalidInput(f"{name} has {len(value)} prompts: give at most {MAX_PROMPTS}")
    return tuple(check_prompt(f"{name}[{place}]", prompt) for place, prompt in enumerate(value))


def check_prompt(name: str, prompt: Any) -> str | tuple[dict[str, str], ...]:
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    if not isinstance(prompt, list | tuple) or not prompt:
        raise InvalidInput(f"{name} is empty: give a text, or a list of messages")
    for message in prompt:
        is_message = isinstance(message, Mapping) and message.keys() >= {"role", "content"}
        if not is_message or not all(isinstance(text, str) for text in message.values()):
            raise InvalidInput(f"{name} has a message without role and content as texts")
    return tuple(dict(message) for message in prompt)


def check_sampling(name: str, value: Any) -> "SamplingConfig":
    checked = check_fields(value, SAMPLING_CHECKS, name=name, within=f"{name}.")
    return SamplingConfig(**checked)


SAMPLING_CHECKS: Mapping[str, Check] = {
    "prompts": check_prompts,
    "every": whole(0, 1_000_000),
    "max_tokens": whole(1, 32_768),
    "temperature": real(0, 10),
}
SHARED_CHECKS: Mapping[str, Check] = {
    "rank": whole(0, MAX_RANK),  # 0: all weights
    "alpha": real(0, 10_000, above=True),
    "train_mlp": yes_or_no,
    "train_attn": yes_or_no,
    "train_unembed": yes_or_no,
    "train_embed": yes_or_no,
    "learning_rate": real(0, 1, above=True),
    "schedule": one_of(("constant", "linear", "cosine")),
    "warmup_steps": whole(0, 1_000_000),
    "weight_decay": real(0, 10),
    "grad_clip_norm": real(0, 1e9),
    "batch_size": whole(1, 4096),
    "epochs": optional(real(0, 1000, above=True)),
    "steps": optional(whole(1, 1_000_000)),
    "held_out_share": real(0, 0.9),
    "held_out_by": one_of(("row", "prompt")),
    "num_splits": whole(0, 32_767),
    "seed": whole(0, 2**31 - 1),
    "max_length": optional(whole(8, 1_000_000)),
    "checkpoint_every": whole(0, 1_000_000),
    "evaluate_every": whole(0, 1_000_000),
    "early_stop": check_early_stop,
    "sampling": check_sampling,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """What the run says while it learns. A prompt is a user's message or a list of messages."""

    prompts: tuple[str | tuple[Mapping[str, str], ...], ...] = ()
    every: int = 10  # steps; 0: never
    max_tokens: int = 64
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step takes, said before anything ran."""

    tokens: float  # of all its sequences
    longest: float  # of one of them
    passes: float = 1.0  # over these tokens, each forward and backward; forward alone is half a one


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """Exactly one of epochs and steps counts: `steps`, where it is given.

    With rank 0 all weights learn: what describes an adapter says nothing then. A recipe adds its
    own fields, and the check of each to CHECKS.
    """

    CHECKS: ClassVar[Mapping[str, Check]] = SHARED_CHECKS
    TITLE: ClassVar[str] = "recipe"  # as errors call it
    # Its steps tell the loss themselves: what the device sums up is not it.
    TELLS_LOSS: ClassVar[bool] = False

    rank: int = 32
    alpha: float = LORA_ALPHA
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = False
    train_embed: bool = False
    learning_rate: float = 1e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0  # 0: none
    batch_size: int = 8
    epochs: float | None = None
    steps: int | None = None
    held_out_share: float = 0.1
    held_out_by: HeldOutBy = "row"  # prompt: rows that ask the same stand on one side
    num_splits: int = 0  # that the rows have been through before: this one is another
    seed: int = 0
    max_length: int | None = None  # tokens; None: the model's context
    checkpoint_every: int = 0  # steps; 0: at the end only
    evaluate_every: int = 10  # steps; 0: never
    early_stop: EarlyStop | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        checked = check_fields(data, cls.CHECKS, name=f"the {cls.TITLE} config")
        if checked.get("epochs") is not None and checked.get("steps") is not None:
            raise InvalidInput("epochs and steps are both given: leave one of them out")
        if checked.get("epochs") is None and checked.get("steps") is None:
            checked["epochs"] = 1.0
        if checked.get("rank") == 0:
            check_full(checked)
            checked.setdefault("learning_rate", cls.find_usual_rate(is_full=True))
        config = cls(**checked)
        if not config.lora.has_parts:
            raise InvalidInput(f"{', '.join(PARTS)} are all off: nothing learns")
        config.check_early_stop()
        return config

    def check_early_stop(self) -> None:
        """What is never measured would never end the run."""
        rule = self.early_stop
        if rule is None or not rule.metric.startswith("held_out"):
            return
        if self.evaluate_every == 0 or self.held_out_share == 0:
            raise InvalidInput(
                f"early_stop watches {rule.metric}, which is never measured: set evaluate_every and"
                " held_out_share"
            )

    @classmethod
    def find_usual_rate(cls, *, is_full: bool = False) -> float:
        defaults: dict[str, Any] = {each.name: each.default for each in fields(cls)}
        usual = float(defaults["learning_rate"])
        return float(f"{usual * FULL_SHARE:.6g}") if is_full else usual

    def to_dict(self) -> dict[str, Any]:
        left_out = (*(OF_ADAPTERS if self.is_full else ()), *self._unused)
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    @property
    def _unused(self) -> tuple[str, ...]:
        """What says nothing where it is absent."""
        defaults = {each.name: each.default for each in fields(self)}
        silent = {"early_stop": None, "held_out_by": "row", "num_splits": 0}
        return tuple(
            name for name, value in silent.items() if getattr(self, name) == value == defaults[name]
        )

    @property
    def is_full(self) -> bool:
        return self.rank == 0

    @property
    def lora(self) -> LoraSpec:
        return LoraSpec(
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            train_mlp=self.train_mlp,
            train_attn=self.train_attn,
            train_unembed=self.train_unembed,
            train_embed=self.train_embed,
        )

    def split(self, items: Iterable[AskedT]) -> tuple[list[AskedT], list[AskedT]]:
        """(train, held out)."""
        return split_held_out(
            items,
            share=self.held_out_share,
            seed=self.seed,
            by=self.held_out_by,
            num_splits=self.num_splits,
        )

    @property
    def split_name(self) -> str:
        """What the hash of a row's side is salted with, besides the seed."""
        return name_split(self.num_splits)

    def count_steps(self, num_train: int) -> int:
        return count_steps(
            num_train, batch_size=self.batch_size, epochs=self.epochs, steps=self.steps
        )

    def estimate_work(self, *, row_tokens: float, longest_row: float) -> Work:
        """Of a dataset whose rows have so many tokens, all their texts together."""
        return Work(tokens=row_tokens * self.batch_size, longest=longest_row)

    def adam_at(
        self, index: int, *, num_steps: int, learning_rate: float | None = None
    ) -> AdamParams:
        """For the step after `index` others. A steered learning rate is the schedule's new peak."""
        peak = self.learning_rate if learning_rate is None else learning_rate
        return AdamParams(
            learning_rate=peak * self.factor_at(index, num_steps=num_steps),
            weight_decay=self.weight_decay,
            grad_clip_norm=self.grad_clip_norm,
        )

    def factor_at(self, index: int, *, num_steps: int) -> float:
        """Rises through the warm-up, then falls to just above 0 at the last step."""
        if index < self.warmup_steps:
            return (index + 1) / (self.warmup_steps + 1)
        done = (index - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}
        return factors[self.schedule]

    def is_checkpoint_due(self, number: int, *, num_steps: int) -> bool:
        return number == num_steps or is_due(self.checkpoint_every, number)

    def is_evaluation_due(self, number: int, *, num_steps: int) -> bool:
        return self.evaluate_every > 0 and (
            number == num_steps or is_due(self.evaluate_every, number)
        )

    def is_sampling_due(self, number: int, *, num_steps: int) -> bool:
        """The prompts are answered before the first step too: number 0."""
        every = self.sampling.every if self.sampling.prompts else 0
        return every > 0 and (number in (0, num_steps) or is_due(every, number))

    def is_anything_due(self, number: int, *, num_steps: int) -> bool:
        return (
            self.is_checkpoint_due(number, num_steps=num_steps)
            or self.is_evaluation_due(number, num_steps=num_steps)
            or self.is_sampling_due(number, num_steps=num_steps)
        )


def check_full(settings: Mapping[str, Any]) -> None:
    for name in OF_ADAPTERS:
        if name in settings:
            raise InvalidInput(
                f"{name} is a setting of adapters, and rank 0 trains all weights: leave it out"
            )


def is_due(every: int, number: int) -> bool:
    return every > 0 and number > 0 and number % every == 0
