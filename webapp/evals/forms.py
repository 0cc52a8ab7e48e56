"""Forms of evaluations: a suite, and what to evaluate on it."""

import re
from typing import Any, ClassVar

from django import forms

from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion
from webapp.deployments.forms import offer_targets
from webapp.evals.models import EvalSuite
from webapp.evals.services import GRADERS

GRADER_LABELS = {
    "exact_match": "Exact match: the answer is the target",
    "contains": "Contains: the target stands in the answer",
    "numeric": "Numeric: the last number is the target's",
    "regex": "Regular expression: found in the answer",
    "valid_json": "Valid JSON: the answer can be read",
    "json_equal": "JSON equal: the same value as the target",
    "accepted_call": "Accepted call: a function call that the target accepts",
}
IGNORES_CASE = ("exact_match", "contains", "regex")


def offer_graders() -> list[tuple[str, str]]:
    return [(name, GRADER_LABELS.get(name, name.replace("_", " "))) for name in GRADERS]


def offer_versions(actor: Actor) -> list[tuple[str, str]]:
    ready = DatasetVersion.objects.in_project(actor).filter(status=DatasetVersion.Status.READY)
    rows = ready.select_related("dataset").defer("report").order_by("-created_at")
    return [(row.pk, f"{row} ({row.num_rows:,} row{'s'[: row.num_rows != 1]})") for row in rows]


class SuiteForm(forms.Form):
    """Held-out rows, how they are graded and how answers are sampled; frozen once made."""

    name = forms.CharField(max_length=120, error_messages={"required": "A suite needs a name."})
    dataset_version = forms.ChoiceField(
        label="Rows of", error_messages={"required": "Choose a dataset version."}
    )
    held_out_share = forms.FloatField(
        label="Held-out share",
        initial=0.1,
        help_text="The rows that a run with this share and seed never trains on.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0, "max": 1}),
    )
    seed = forms.IntegerField(label="Split seed", initial=0)
    limit = forms.IntegerField(
        label="At most", initial=100, required=False, help_text="Empty: all of them."
    )
    score = forms.ChoiceField(
        label="Score", help_text="The grader whose mean is the suite's score.", initial=GRADERS[0]
    )
    also = forms.MultipleChoiceField(
        label="Grade also by", required=False, widget=forms.CheckboxSelectMultiple
    )
    pattern = forms.CharField(
        required=False,
        max_length=1000,
        help_text="For the regular expression; without one, each row's target is the pattern.",
    )
    tolerance = forms.FloatField(
        required=False,
        help_text="For numbers: how far they may be apart.",
        widget=forms.NumberInput(attrs={"step": "any", "placeholder": "0.000001"}),
    )
    ignore_case = forms.BooleanField(required=False, label="Upper and lower case are the same")
    max_tokens = forms.IntegerField(label="Longest answer", initial=256)
    temperature = forms.FloatField(
        initial=0.0,
        help_text="0: greedy, so that the same weights give the same answers.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0}),
    )
    sampling_seed = forms.IntegerField(initial=0)

    SAMPLING: ClassVar = {
        "max_tokens": "max_tokens",
        "temperature": "temperature",
        "seed": "sampling_seed",
    }

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["dataset_version"].choices = offer_versions(actor)  # type: ignore[attr-defined]
        for name in ("score", "also"):
            self.fields[name].choices = offer_graders()  # type: ignore[attr-defined]

    def clean_pattern(self) -> str:
        pattern: str = self.cleaned_data["pattern"]
        try:
            re.compile(pattern)
        except re.error as error:
            raise forms.ValidationError(f"This is not a regular expression: {error}.") from error
        return pattern

    def write_graders(self) -> list[dict[str, Any]]:
        """The score first, each grader once, with the settings that it knows."""
        names = dict.fromkeys([self.cleaned_data["score"], *self.cleaned_data["also"]])
        return [{"name": name, **self._write_settings(name)} for name in names]

    def _write_settings(self, name: str) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        if name in IGNORES_CASE and self.cleaned_data["ignore_case"]:
            chosen["ignore_case"] = True
        if name == "numeric" and self.cleaned_data["tolerance"] is not None:
            chosen["tolerance"] = self.cleaned_data["tolerance"]
        if name == "regex" and self.cleaned_data["pattern"]:
            chosen["pattern"] = self.cleaned_data["pattern"]
        return chosen

    def write_sampling(self) -> dict[str, Any]:
        return {name: self.cleaned_data[field] for name, field in self.SAMPLING.items()}


class EvaluationForm(forms.Form):
    """What to evaluate on which suite."""

    suite = forms.ChoiceField(error_messages={"required": "Choose a suite."})
    target = forms.ChoiceField(
        label="Weights", error_messages={"required": "Choose a checkpoint or a base model."}
    )

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        suites = EvalSuite.objects.in_project(actor).exclude(status=EvalSuite.Status.FAILED)
        self.fields["suite"].choices = list(suites.values_list("pk", "name"))  # type: ignore[attr-defined]
        self.fields["target"].choices = offer_targets(actor)  # type: ignore[attr-defined]
