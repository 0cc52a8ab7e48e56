"""Forms of the methods that learn from preference pairs."""

from django import forms

from webapp.runs.forms import OVERLONG, LaunchForm


class PairsForm(LaunchForm):
    """What both say in other words than supervised fine-tuning does."""

    WORDS = {  # noqa: RUF012 - never changed
        "batch_size": {"help_text": "Pairs an optimizer step learns from."},
        "evaluate_every": {"label": "Measure held-out pairs every"},
        "held_out_share": {
            "help_text": "Of the pairs: never trained on, only measured. 0.1 is one in ten, drawn"
            " anew where the version is one side of a split. Pairs with one prompt stay together."
        },
    }


class DpoForm(PairsForm):
    """Direct preference optimization."""

    OWN = ("beta",)
    OF_ROWS = ("overlong",)
    TITLE = "Preferences"

    beta = forms.FloatField(
        initial=0.1,
        min_value=0.001,
        max_value=100,
        help_text="How close the model stays to the weights it begins with: the smaller, the"
        " further it may go. 0.1 is usual.",
    )
    overlong = forms.ChoiceField(label="Longer answers", choices=OVERLONG, initial="truncate")


class RewardModelForm(PairsForm):
    """A judge of answers. A pair that is too long is left out: cut, it would ask nothing."""
