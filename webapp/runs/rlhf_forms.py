"""The form of reinforcement learning from human feedback: the few settings that matter a stage."""

from collections.abc import Iterator
from typing import Any

from django import forms

from training.types import MAX_RANK
from webapp.accounts.models import Actor
from webapp.core.forms import say_limits
from webapp.datasets.models import DatasetVersion, DatasetVersionQuerySet
from webapp.fleet.models import BaseModel
from webapp.runs.forms import LORA, offer_rates
from webapp.runs.methods import METHODS
from webapp.runs.rlhf import STAGES

HEADINGS = {
    "sft": ("1. Show it how to answer", "Supervised fine-tuning: the policy begins with this."),
    "reward_model": ("2. Train a judge", "A reward model, which begins with the base model."),
    "rl": ("3. Learn from the judge", "Answers are sampled in groups; the judge compares them."),
}
OF_RL = ("group_size", "max_tokens", "kl_coefficient")


def make_steps(initial: int) -> forms.IntegerField:
    return forms.IntegerField(label="Steps", initial=initial, min_value=1, max_value=1_000_000)


def make_batch(initial: int, what: str) -> forms.IntegerField:
    return forms.IntegerField(
        label="Batch size", initial=initial, min_value=1, max_value=4096, help_text=what
    )


def make_rate() -> forms.FloatField:
    return forms.FloatField(label="Learning rate", min_value=1e-9, max_value=1)


def make_version() -> forms.ModelChoiceField[DatasetVersion]:
    return forms.ModelChoiceField(
        queryset=DatasetVersion.objects.none(),
        label="Dataset",
        empty_label=None,
        error_messages={"invalid_choice": "Choose a version that is ready, of this project."},
    )


class RlhfForm(forms.Form):
    """A field of a stage has the stage's name before its own."""

    name = forms.CharField(
        max_length=100, required=False, help_text="Left empty: RLHF on the model."
    )
    base_model = forms.ModelChoiceField(
        queryset=BaseModel.objects.none(), label="Base model", empty_label=None
    )
    rank = forms.IntegerField(
        label="LoRA rank", initial=32, min_value=1, max_value=MAX_RANK, help_text="Of all stages."
    )
    sft_dataset_version = make_version()
    sft_steps = make_steps(100)
    sft_batch_size = make_batch(8, "Rows an optimizer step learns from.")
    sft_learning_rate = make_rate()
    reward_model_dataset_version = make_version()
    reward_model_steps = make_steps(100)
    reward_model_batch_size = make_batch(8, "Pairs an optimizer step learns from.")
    reward_model_learning_rate = make_rate()
    rl_dataset_version = make_version()
    rl_steps = make_steps(50)
    rl_batch_size = make_batch(8, "Prompts a step answers.")
    rl_learning_rate = make_rate()
    rl_group_size = forms.IntegerField(
        label="Group size", initial=4, min_value=2, max_value=256,
        help_text="Answers to each prompt, compared with each other.",
    )  # fmt: skip
    rl_max_tokens = forms.IntegerField(
        label="Longest rollout", initial=256, min_value=1, max_value=32_768
    )
    rl_kl_coefficient = forms.FloatField(
        label="KL coefficient", initial=0.05, min_value=0, max_value=100,
        help_text="Holds the policy near what the first stage made.",
    )  # fmt: skip

    def __init__(self, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor = actor
        models = BaseModel.objects.prefetch_related("names").filter(has_chat_template=True)
        self._field("base_model").queryset = models.order_by("added_at")
        for recipe in STAGES:
            self._field(f"{recipe}_dataset_version").queryset = self._find_versions(recipe)
            rates = offer_rates(models.order_by("added_at").first(), METHODS[recipe].config)
            self.fields[f"{recipe}_learning_rate"].initial = rates[LORA]
        for field in self.fields.values():
            if isinstance(field, forms.FloatField):
                field.widget.attrs["step"] = "any"
        say_limits(self)

    def _field(self, name: str) -> forms.ModelChoiceField[Any]:
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        return field

    def _find_versions(self, recipe: str) -> DatasetVersionQuerySet:
        """Of the actor's project, those that the stage could learn from."""
        versions = DatasetVersion.objects.in_project(self.actor).select_related("dataset")
        ready = versions.filter(status=DatasetVersion.Status.READY).order_by("-created_at")
        return ready.filter(kind__in=METHODS[recipe].kinds)

    @property
    def lacks(self) -> str:
        """What the datasets hold that are not there yet; empty: all are."""
        missing = (
            METHODS[recipe].wanted
            for recipe in STAGES
            if self._find_versions(recipe).first() is None
        )
        return "; ".join(dict.fromkeys(missing))

    @property
    def stages(self) -> Iterator[tuple[str, str, list[forms.BoundField]]]:
        """Heading, sentence and fields of each."""
        for recipe in STAGES:
            fields = [self[name] for name in self.fields if name.startswith(f"{recipe}_")]
            yield *HEADINGS[recipe], fields

    def make_stages(self) -> dict[str, dict[str, Any]]:
        """Valid forms only: what `create_rlhf` takes."""
        return {
            recipe: {
                "dataset_version": self.cleaned_data[f"{recipe}_dataset_version"],
                "config": self.make_config(recipe),
            }
            for recipe in STAGES
        }

    def make_config(self, recipe: str) -> dict[str, Any]:
        names = ("steps", "batch_size", "learning_rate", *(OF_RL if recipe == "rl" else ()))
        config = {name: self.cleaned_data[f"{recipe}_{name}"] for name in names}
        return {"rank": self.cleaned_data["rank"], **config}
