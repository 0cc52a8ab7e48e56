"""The form that makes question-answer pairs of documents."""

from typing import Any

from django import forms

from webapp.accounts.models import Actor
from webapp.core.forms import say_limits
from webapp.datasets.generations import DEFAULTS
from webapp.deployments.forms import offer_targets


class ManyFiles(forms.FileInput):
    allow_multiple_selected = True


class ManyFilesField(forms.FileField):
    def clean(self, data: Any, initial: Any = None) -> Any:
        """Each by itself; none is the same mistake as for one file."""
        return [super(ManyFilesField, self).clean(each, initial) for each in data or [None]]


class GenerationForm(forms.Form):
    """The documents themselves are checked by the service, for every door alike."""

    documents = ManyFilesField(
        allow_empty_file=True,
        label="Documents",
        help_text="Markdown, text or PDF; several at once.",
        error_messages={"required": "Choose a document: Markdown, text or PDF."},
        widget=ManyFiles(attrs={"accept": ".md,.markdown,.txt,.text,.pdf"}),
    )
    name = forms.CharField(
        max_length=120,
        label="Dataset",
        help_text="A new name makes a dataset; a known one gets its next version.",
        error_messages={"required": "A dataset needs a name."},
        widget=forms.TextInput(attrs={"list": "dataset-names"}),
    )
    target = forms.ChoiceField(
        label="Model to ask",
        help_text="A larger model than the one you train writes better pairs.",
        error_messages={"required": "Choose a deployment, a checkpoint or a base model."},
    )
    num_pairs = forms.IntegerField(
        label="Pairs a passage", min_value=1, max_value=20, initial=DEFAULTS["num_pairs"]
    )
    passage_characters = forms.IntegerField(
        label="Characters a passage",
        min_value=100,
        max_value=20_000,
        initial=DEFAULTS["passage_characters"],
    )
    max_tokens = forms.IntegerField(
        label="Longest answer, tokens", min_value=16, max_value=8192, initial=DEFAULTS["max_tokens"]
    )
    temperature = forms.FloatField(
        min_value=0,
        max_value=2,
        initial=DEFAULTS["temperature"],
        widget=forms.NumberInput(attrs={"step": "any"}),
    )
    seed = forms.IntegerField(min_value=0, max_value=2**31, initial=DEFAULTS["seed"])

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        targets = offer_targets(actor, with_deployments=True)
        self.fields["target"].choices = targets  # type: ignore[attr-defined]
        say_limits(self)

    def write_options(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in DEFAULTS}
