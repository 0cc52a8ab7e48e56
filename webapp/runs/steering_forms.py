"""The forms that steer a run which is learning."""

from django import forms

from webapp.runs.steering import MOST_KL


class LearningRateForm(forms.Form):
    """Steers a run that is learning."""

    learning_rate = forms.FloatField(
        min_value=1e-9,
        max_value=1,
        widget=forms.NumberInput(attrs={"step": "any"}),
        help_text="From the next step on: the schedule goes on from this peak.",
    )


class KlCoefficientForm(forms.Form):
    """Steers a run that keeps near a reference."""

    kl_coefficient = forms.FloatField(
        label="KL coefficient",
        min_value=0,
        max_value=MOST_KL,
        widget=forms.NumberInput(attrs={"step": "any"}),
        help_text="What distance to the reference costs, from the next step on. 0: nothing.",
    )
