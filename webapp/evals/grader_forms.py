"""A grader of a suite that is being made: a row of the form, with the settings of its kind."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from django import forms

from training.recipes.graders import KINDS, REQUIRED
from webapp.accounts.models import Actor
from webapp.core.forms import StorableJSONField
from webapp.deployments.forms import Choices, offer_checkpoints
from webapp.deployments.models import Deployment
from webapp.fleet.models import BaseModel

MAX_ROWS = 12
PREFIX = "grader-{number}"
NAME = re.compile(r"grader-(\d{1,9})-name")
# Which fields a row of each kind has, beside its name.
FIELDS: dict[str, tuple[str, ...]] = {
    "exact_match": ("column", "ignore_case"),
    "contains": ("column", "ignore_case"),
    "numeric": ("column", "tolerance"),
    "math": ("column", "seconds"),
    "regex": ("pattern", "ignore_case"),
    "json_equal": ("column",),
    "json_schema": ("schema", "seconds"),
    "accepted_call": ("column",),
    "unit_tests": ("column", "entry", "seconds", "memory_mib", "partial"),
    "reasoning_gym": ("task", "seconds"),
    "llm_judge": ("judge", "rubric", "max_tokens", "reference"),
}
HINTS = {
    "unit_tests": "The answer's code runs shut in: no files, no network, and never sees its tests.",
    "reasoning_gym": "Partial credit counts; what a scorer gives to a text that says nothing is "
    "taken off.",
    "math": "Fractions, roots, sets and equations are equal where sympy finds them equal.",
    "llm_judge": "The judge's words are kept beside each score.",
}


def offer_judges(actor: Actor) -> Choices:
    """By the names that requests to /v1 use."""
    running = Deployment.objects.in_project(actor).exclude(status=Deployment.Status.STOPPED)
    bases = [(base.name, base.name) for base in BaseModel.objects.prefetch_related("names")]
    groups: Choices = [
        ("Deployments", [(name, name) for name in running.values_list("name", flat=True)]),
        ("Base models", bases),
        ("Checkpoints", list(offer_checkpoints(actor))),
    ]
    return [group for group in groups if group[1]]


class GraderForm(forms.Form):
    """Only the fields of its kind; the service checks what they say."""

    name = forms.ChoiceField(label="Grader")
    column = forms.CharField(
        required=False,
        max_length=200,
        help_text="Of the row, to compare with. Empty: its last answer, or its target.",
    )
    ignore_case = forms.BooleanField(required=False, label="Upper and lower case are the same")
    tolerance = forms.FloatField(
        required=False,
        help_text="How far the numbers may be apart.",
        widget=forms.NumberInput(attrs={"step": "any", "placeholder": "0.000001"}),
    )
    pattern = forms.CharField(
        required=False, max_length=1000, help_text="Empty: each row's target is the pattern."
    )
    schema = StorableJSONField(
        required=False,
        help_text="Empty: each row's column schema.",
        widget=forms.Textarea(attrs={"rows": 4, "class": "mono", "spellcheck": "false"}),
    )
    entry = forms.CharField(
        required=False,
        max_length=200,
        label="Function",
        help_text="That check(candidate) is given. Empty: the row's column entry_point.",
    )
    seconds = forms.FloatField(
        required=False,
        help_text="An answer that takes longer is wrong.",
        widget=forms.NumberInput(attrs={"step": "any", "placeholder": "10"}),
    )
    memory_mib = forms.IntegerField(
        required=False, label="Memory", widget=forms.NumberInput(attrs={"placeholder": "256"})
    )
    partial = forms.BooleanField(required=False, label="Each test of several counts for itself")
    task = forms.CharField(
        required=False, max_length=200, help_text="Empty: the row's column task."
    )
    judge = forms.ChoiceField(required=False)
    rubric = forms.CharField(
        required=False,
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 5}),
        help_text="What a good answer is. The judge gives 0 to 10.",
    )
    max_tokens = forms.IntegerField(
        required=False,
        label="Longest verdict",
        widget=forms.NumberInput(attrs={"placeholder": "256"}),
    )
    reference = forms.ChoiceField(
        required=False,
        label="The row's target",
        choices=[("show", "the judge reads it"), ("hide", "the judge does not see it")],
    )

    def __init__(self, *args: Any, actor: Actor, number: int, **kwargs: Any) -> None:
        kwargs["prefix"] = PREFIX.format(number=number)
        super().__init__(*args, **kwargs)
        self.number = number
        self.fields["name"].choices = [  # type: ignore[attr-defined]
            (name, kind.label) for name, kind in KINDS.items()
        ]
        self.fields["judge"].choices = offer_judges(actor)  # type: ignore[attr-defined]
        self.kind = self._find_kind()
        for name in set(self.fields) - {"name", *FIELDS.get(self.kind, ())}:
            del self.fields[name]
        for name in REQUIRED.get(self.kind, ()):
            self.fields[name].required = True
        if self.kind == "unit_tests":
            self.fields["column"].help_text = "With the tests. Empty: tests."

    def _find_kind(self) -> str:
        given = self.data.get(f"{self.prefix}-name") if self.is_bound else self.initial.get("name")
        return str(given or "exact_match")

    @property
    def hint(self) -> str:
        return HINTS.get(self.kind, "")

    def write(self) -> dict[str, Any]:
        """The grader as a suite keeps it."""
        chosen = {key: self.cleaned_data.get(key) for key in FIELDS.get(self.kind, ())}
        said = {key: value for key, value in chosen.items() if value not in (None, "", False)}
        return {"name": self.cleaned_data["name"], **said}


def read_rows(data: Mapping[str, Any], actor: Actor) -> list[GraderForm]:
    """In the order in which they stand on the page."""
    found = [match for key in data if (match := NAME.fullmatch(key))]
    return [GraderForm(data, actor=actor, number=int(match.group(1))) for match in found[:MAX_ROWS]]


def begin_rows(actor: Actor, names: Sequence[str]) -> list[GraderForm]:
    return [
        GraderForm(actor=actor, number=number, initial={"name": name})
        for number, name in enumerate(names)
    ]
