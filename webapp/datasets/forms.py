"""The upload form."""

from typing import Any

from django import forms

from webapp.datasets.reports import KIND_WORDS


class UploadForm(forms.Form):
    """What is wrong with the file itself is said by the service, for every door alike."""

    name = forms.CharField(
        max_length=120,
        label="Dataset",
        help_text="A new name makes a dataset; a known one gets its next version.",
        error_messages={"required": "A dataset needs a name."},
    )
    file = forms.FileField(
        allow_empty_file=True,
        label="File",
        error_messages={"required": "Choose a file: .jsonl, .csv or .parquet."},
        widget=forms.FileInput(attrs={"accept": ".jsonl,.ndjson,.json,.csv,.parquet"}),
    )
    kind = forms.ChoiceField(
        required=False,
        label="What a row is",
        choices=[("", "As its columns say"), *KIND_WORDS.items()],
        help_text="Choose one where the columns do not tell, such as question and answer.",
    )


class ImportForm(forms.Form):
    """Where the file is: a path of this machine, or a dataset of the Hub."""

    name = forms.CharField(
        max_length=120,
        label="Dataset",
        help_text="A new name makes a dataset; a known one gets its next version.",
        error_messages={"required": "A dataset needs a name."},
    )
    path = forms.CharField(
        required=False,
        label="File of this machine",
        help_text="Its path in the folder that HONE_IMPORT_DIR names; for operators.",
    )
    repository = forms.CharField(
        required=False, label="Dataset of the Hub", help_text="Such as openai/gsm8k."
    )
    file = forms.CharField(
        required=False, label="Its file", help_text="Empty: its only file of rows."
    )
    revision = forms.CharField(required=False, help_text="Empty: main.")
    kind = forms.ChoiceField(
        required=False,
        label="What a row is",
        choices=[("", "As its columns say"), *KIND_WORDS.items()],
    )

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if bool(data.get("path")) == bool(data.get("repository")):
            raise forms.ValidationError("Give a file of this machine, or a dataset of the Hub.")
        return data
