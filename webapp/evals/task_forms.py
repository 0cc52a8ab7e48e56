"""The form of a task of lm-eval: its file, and its rows."""

from typing import Any

from django import forms

from training.recipes.lm_task import PLAIN
from webapp.accounts.models import Actor
from webapp.evals.checks import MAX_ROWS_TEXT
from webapp.evals.forms import offer_versions


class TaskForm(forms.Form):
    """What the task says is checked by the service."""

    name = forms.CharField(max_length=120, error_messages={"required": "A suite needs a name."})
    task = forms.CharField(
        initial=PLAIN,
        widget=forms.Textarea(attrs={"rows": 14, "class": "mono", "spellcheck": "false"}),
        help_text="The YAML file without where its rows are: generate_until or multiple_choice. "
        "Its templates see every column of a row.",
        error_messages={"required": "Give the task's YAML."},
    )
    dataset_version = forms.ChoiceField(
        required=False,
        label="Rows of",
        help_text="Each has question and answer, and the row's other columns.",
    )
    rows = forms.FileField(
        required=False,
        label="Or a file of rows",
        help_text="JSON lines, an object a line.",
        widget=forms.ClearableFileInput(attrs={"accept": ".jsonl,.json"}),
    )
    is_chat = forms.BooleanField(
        required=False,
        label="Ask as a chat",
        help_text="By the model's chat template; only where answers are written.",
    )

    def __init__(self, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = [("", "a file"), *offer_versions(actor)]
        self.fields["dataset_version"].choices = versions  # type: ignore[attr-defined]

    def clean_rows(self) -> str:
        file = self.cleaned_data["rows"]
        if file is None:
            return ""
        if file.size > MAX_ROWS_TEXT:
            raise forms.ValidationError(f"The file has more than {MAX_ROWS_TEXT:,} bytes.")
        try:
            return str(file.read().decode())
        except UnicodeDecodeError as error:
            raise forms.ValidationError(f"The file is not UTF-8: {error}.") from error
