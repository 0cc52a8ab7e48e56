"""The upload form."""

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
