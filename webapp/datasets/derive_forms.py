"""The form that filters and splits: one of each filter, every one of them optional."""

from typing import Any

from django import forms

from training.row_filters import LOSSES, PLACES, ROLES
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel

KEEP = [("keep", "Keep these rows"), ("drop", "Leave these rows out")]
LOSS_WORDS = {"never_learnt": "never learned", "rose": "whose loss rose"}
NUM_RUNS = 50


class DeriveForm(forms.Form):
    """Rows go through the filters from top to bottom, then onto a side of the split."""

    unit = forms.ChoiceField(
        required=False,
        label="Length in",
        choices=[("characters", "characters"), ("messages", "messages")],
    )
    least = forms.IntegerField(required=False, min_value=0, label="At least")
    most = forms.IntegerField(required=False, min_value=0, label="At most")
    pattern = forms.CharField(
        required=False,
        strip=False,
        label="Text matches",
        help_text="A regular expression.",
        widget=forms.TextInput(attrs={"class": "mono", "spellcheck": "false"}),
    )
    where = forms.ChoiceField(
        required=False,
        label="Where",
        choices=[
            (place, "anywhere" if place == "anywhere" else f"the {place}") for place in PLACES
        ],
    )
    pattern_act = forms.ChoiceField(required=False, label="Then", choices=KEEP)
    ignore_case = forms.BooleanField(required=False, label="Upper and lower case are the same")
    role = forms.ChoiceField(
        required=False,
        label="Has a message of",
        choices=[("", "any"), *[(role, f"the {role}") for role in ROLES]],
    )
    role_act = forms.ChoiceField(required=False, label="Then", choices=KEEP)
    column = forms.CharField(
        required=False,
        label="Column",
        help_text="A further column of the rows.",
        widget=forms.TextInput(attrs={"list": "columns"}),
    )
    value = forms.CharField(required=False, strip=False, label="Equals")
    column_act = forms.ChoiceField(required=False, label="Then", choices=KEEP)
    duplicates = forms.BooleanField(required=False, label="Each row once")
    near = forms.BooleanField(required=False, label="One of each group of near-duplicates")
    threshold = forms.FloatField(
        required=False,
        min_value=0.5,
        max_value=1,
        initial=0.8,
        label="Similarity",
        help_text="Of the words: 1 is all the same.",
        widget=forms.NumberInput(attrs={"step": "0.05"}),
    )
    run = forms.ChoiceField(required=False, label="Run")
    which = forms.ChoiceField(
        required=False,
        label="Its rows",
        choices=[(which, LOSS_WORDS[which]) for which in LOSSES],
    )
    held_out_share = forms.FloatField(
        required=False,
        min_value=0.001,
        max_value=0.999,
        label="Held-out share",
        help_text="Empty: no split. 0.1 holds a tenth of the rows out, in a version of its own.",
        widget=forms.NumberInput(attrs={"step": "any"}),
    )
    seed = forms.IntegerField(required=False, min_value=0, max_value=2**31, initial=0)
    by_prompt = forms.BooleanField(
        required=False, label="Rows with the same prompt fall on one side"
    )
    name = forms.CharField(
        required=False,
        max_length=120,
        label="Dataset",
        help_text="Empty: the next version of this one.",
    )

    def __init__(self, *args: object, version: DatasetVersion, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        units = self.fields["unit"].choices  # type: ignore[attr-defined]
        models = BaseModel.objects.prefetch_related("names").filter(has_chat_template=True)
        self.fields["unit"].choices = [  # type: ignore[attr-defined]
            *units,
            *[(base.pk, f"tokens of {base.name}") for base in models],
        ]
        runs = version.runs.exclude(step=0).order_by("-created_at")[:NUM_RUNS]
        self.fields["run"].choices = [  # type: ignore[attr-defined]
            ("", "no run"),
            *[(run.pk, run.name) for run in runs],
        ]

    def write_filters(self) -> list[dict[str, Any]]:
        data = self.cleaned_data
        written = [self._write_length(), self._write_pattern()]
        if data["role"]:
            written.append({"filter": "role", "role": data["role"], "drop": self._drops("role")})
        if data["column"]:
            drop = self._drops("column")
            column = {"column": data["column"], "value": data["value"], "drop": drop}
            written.append({"filter": "metadata", **column})
        if data["duplicates"]:
            written.append({"filter": "duplicates"})
        if data["near"]:
            written.append({"filter": "near_duplicates", "threshold": data["threshold"] or 0.8})
        if data["run"]:
            written.append({"filter": "losses", "run": data["run"], "which": data["which"]})
        return [spec for spec in written if spec]

    def _drops(self, name: str) -> bool:
        return bool(self.cleaned_data[f"{name}_act"] == "drop")

    def _write_length(self) -> dict[str, Any]:
        data = self.cleaned_data
        bounds = {name: data[name] for name in ("least", "most") if data[name] is not None}
        if not bounds:
            return {}
        unit = data["unit"] or "characters"
        if unit in ("characters", "messages"):
            return {"filter": "length", "unit": unit, **bounds}
        return {"filter": "length", "unit": "tokens", "base_model": unit, **bounds}

    def _write_pattern(self) -> dict[str, Any]:
        data = self.cleaned_data
        if not data["pattern"]:
            return {}
        return {
            "filter": "contains",
            "pattern": data["pattern"],
            "where": data["where"] or "anywhere",
            "ignore_case": data["ignore_case"],
            "drop": self._drops("pattern"),
        }

    def write_split(self) -> dict[str, Any] | None:
        data = self.cleaned_data
        if not data["held_out_share"]:
            return None
        return {
            "held_out_share": data["held_out_share"],
            "seed": data["seed"] or 0,
            "by_prompt": data["by_prompt"],
        }
