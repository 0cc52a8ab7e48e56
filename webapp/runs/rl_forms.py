"""The launch forms of reinforcement learning: what an answer earns, and how the policy learns."""

from typing import Any, ClassVar

from django import forms

from training.errors import InvalidInput
from training.recipes.graders import KINDS
from training.recipes.rl_config import LOSSES, MAX_STALE, check_rewards
from webapp.core.bodies import parse_json
from webapp.core.errors import UserError
from webapp.runs.forms import LaunchForm

LOSS_LABELS = {
    "importance_sampling": "Importance sampling: plain policy gradient",
    "ppo": "PPO: the ratio is clipped",
    "cispo": "CISPO: the weight is clipped, every token learns",
    "dapo": "DAPO: clipped, with more room upwards",
    "gspo": "GSPO: the ratio of the whole answer is clipped",
}
NORMALIZATIONS = [("mean", "Mean of the group"), ("std", "Mean and standard deviation")]
OWN_SETTINGS = "own"  # graders that need settings are written as JSON
SIMPLE = tuple(name for name, kind in KINDS.items() if kind.place != "judge")


class PolicyForm(LaunchForm):
    """What all methods share that learn from their own samples."""

    POLICY: ClassVar[tuple[str, ...]] = (
        "group_size", "rollout_tokens", "rollout_temperature", "loss", "clip_low", "clip_high",
        "kl_coefficient", "advantage_normalization", "num_substeps", "max_steps_off_policy",
        "remove_constant_reward_groups",
    )  # fmt: skip
    TITLE = "Rollouts and rewards"
    WORDS: ClassVar = {"batch_size": {"help_text": "Prompts that a step answers."}}

    group_size = forms.IntegerField(
        label="Group size", initial=8, min_value=2, max_value=256,
        help_text="Answers to each prompt, compared with each other. 4 to 16 is usual.",
    )  # fmt: skip
    rollout_tokens = forms.IntegerField(
        label="Longest rollout", initial=256, min_value=1, max_value=32_768,
        help_text="Tokens of a sampled answer; what is longer is cut off.",
    )  # fmt: skip
    rollout_temperature = forms.FloatField(
        label="Rollout temperature", initial=1, min_value=0.01, max_value=10,
        help_text="1: sampled as the model is, which is what the losses expect.",
    )  # fmt: skip
    loss = forms.ChoiceField(
        choices=[(name, LOSS_LABELS[name]) for name in LOSSES], initial="importance_sampling"
    )
    clip_low = forms.FloatField(
        label="Lower clip of the ratio", required=False, min_value=0, max_value=1,
        help_text="Left empty: what the loss has by itself.",
    )  # fmt: skip
    clip_high = forms.FloatField(
        label="Upper clip of the ratio", required=False, min_value=1, max_value=100,
        help_text="Left empty: what the loss has by itself.",
    )  # fmt: skip
    kl_coefficient = forms.FloatField(
        label="KL coefficient", initial=0, min_value=0, max_value=100,
        help_text="Holds the policy near the weights it began with. 0: not measured; 0.05 is usual"
        " with a reward model.",
    )  # fmt: skip
    advantage_normalization = forms.ChoiceField(
        label="Advantages against", choices=NORMALIZATIONS, initial="mean"
    )
    num_substeps = forms.IntegerField(
        label="Optimizer steps a batch", initial=1, min_value=1, max_value=64,
        help_text="More than 1 takes a loss that clips.",
    )  # fmt: skip
    max_steps_off_policy = forms.IntegerField(
        label="Batches sampled ahead", initial=0, min_value=0, max_value=MAX_STALE,
        help_text="0: each batch is sampled from the newest weights. 1 or more samples while the"
        " last batch is learned from.",
    )  # fmt: skip
    remove_constant_reward_groups = forms.BooleanField(
        required=False, initial=True, label="Drop groups whose answers all earn the same"
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if data.get("loss") == "importance_sampling":
            for name in ("clip_low", "clip_high"):
                if data.get(name) is not None:
                    self.add_error(name, "Importance sampling clips nothing: leave it empty.")
        return data

    def make_own(self) -> dict[str, Any]:
        """The rollouts' own temperature and length are not those of the pinned prompts' answers."""
        data = self.cleaned_data
        renamed = {"rollout_tokens": "max_tokens", "rollout_temperature": "temperature"}
        given = {renamed.get(name, name): data[name] for name in self.POLICY}
        return {name: value for name, value in given.items() if value is not None}


class RlForm(PolicyForm):
    """Prompts with a reference answer, and graders that say what an answer is worth."""

    OWN = ("grader", "graders", *PolicyForm.POLICY)

    grader = forms.ChoiceField(
        label="Grader",
        choices=[
            *((name, KINDS[name].label) for name in SIMPLE),
            (OWN_SETTINGS, "As written below"),
        ],
        initial="exact_match",
        help_text="What an answer earns, from 0 to 1.",
    )
    graders = forms.CharField(
        label="Graders as JSON",
        required=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text='A list for several graders, their settings and weights: [{"name": "numeric",'
        ' "weight": 1}, {"name": "regex", "pattern": "^\\\\d+$", "weight": 0.1}]. A reward model is'
        ' {"name": "preference", "checkpoint": ID}.',
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if "grader" not in data or "graders" not in data:
            return data
        try:
            data["rewards"] = list(check_rewards("graders", self._read_graders(data)))
        except InvalidInput as error:
            self.add_error("graders", f"{error}.")
        return data

    def _read_graders(self, data: dict[str, Any]) -> Any:
        written = data["graders"].strip()
        if data["grader"] != OWN_SETTINGS and not written:
            return [{"name": data["grader"]}]
        try:
            return parse_json(written.encode())
        except UserError:
            raise InvalidInput("graders are not a JSON list") from None

    def make_own(self) -> dict[str, Any]:
        return {"graders": self.cleaned_data["rewards"], **super().make_own()}
