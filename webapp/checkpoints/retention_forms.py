"""The form of a retention rule."""

from typing import Any

from django import forms
from django.apps import apps

from webapp.checkpoints.models import RetentionRule
from webapp.checkpoints.retention_rules import MOST, Keep

SUITES_OFFERED = 200


def whole(label: str, help_text: str) -> forms.IntegerField:
    return forms.IntegerField(
        label=label, help_text=help_text, required=False, min_value=0, max_value=MOST
    )


class RuleForm(forms.Form):
    """Empty parts keep nothing."""

    best = whole("Keep the best", "This many of the whole project, by their newest score.")
    suite = forms.ChoiceField(label="Score from the suite", required=False)
    last = whole("Keep the last of each run", "This many of each kind, from the newest back.")
    every = whole("Keep every Nth step", "Such as 500: steps 500, 1,000, 1,500 stay.")
    days = whole("Keep what is younger than", "Days since it was saved.")
    is_active = forms.BooleanField(
        label="Apply this rule every minute",
        required=False,
        help_text="Otherwise it deletes only when somebody presses the button after a dry run.",
    )

    def __init__(self, *args: Any, project_id: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        suites = apps.get_model("evals", "EvalSuite")._default_manager.filter(project=project_id)
        offered = suites.order_by("name").values_list("pk", "name")[:SUITES_OFFERED]
        field = self.fields["suite"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", "none"), *offered]

    def read(self) -> Keep:
        chosen = {name: value for name, value in self.cleaned_data.items() if name != "is_active"}
        return Keep.read(chosen)


def fill(rule: RetentionRule | None) -> dict[str, Any]:
    if rule is None:
        return {"last": 1}
    return {**rule.keep, "is_active": rule.is_active}
