"""Forms of aliases: a name with its test, and the checkpoint that it is asked to name."""

from django import forms

from webapp.accounts.models import Actor
from webapp.deployments.forms import offer_checkpoints
from webapp.evals.alias_rules import BETTER, NOT_WORSE
from webapp.evals.answers import name_graders
from webapp.evals.models import EvalSuite


class RuleForm(forms.Form):
    """What is out of range is said by the service."""

    suite = forms.ChoiceField(
        required=False, help_text="What a checkpoint has to pass before the alias names it."
    )
    grader = forms.ChoiceField(required=False, help_text="Empty: the suite's first one.")
    test = forms.ChoiceField(
        choices=[
            (BETTER, "better: the paired test says so"),
            (NOT_WORSE, "not worse: the interval lies above the margin"),
        ],
        initial=BETTER,
    )
    margin = forms.FloatField(
        initial=2.0,
        required=False,
        help_text="For not worse: how much it may lose.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0}),
    )
    level = forms.FloatField(
        initial=0.95,
        help_text="How sure it has to be: 0.95 is wrong once in 20 times.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0.5, "max": 0.9999}),
    )

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        ready = EvalSuite.objects.in_project(actor).filter(status=EvalSuite.Status.READY)
        suites = list(ready.defer("items"))
        free = ("", "none: it moves freely")
        self.fields["suite"].choices = [  # type: ignore[attr-defined]
            free,
            *((each.pk, each.name) for each in suites),
        ]
        graders = dict.fromkeys(name for each in suites for name in name_graders(each))
        self.fields["grader"].choices = [  # type: ignore[attr-defined]
            ("", "the suite's score"),
            *((name, name.replace("_", " ")) for name in graders),
        ]

    def clean_margin(self) -> float:
        return self.cleaned_data["margin"] or 0.0


class AliasForm(RuleForm):
    name = forms.CharField(
        max_length=80,
        help_text="Such as prod or best. Programs ask for it as a model; it stays when it moves.",
        error_messages={"required": "An alias needs a name."},
    )


class MoveForm(forms.Form):
    checkpoint = forms.ChoiceField(label="To", error_messages={"required": "Choose a checkpoint."})

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.offered = list(offer_checkpoints(actor))
        self.fields["checkpoint"].choices = self.offered  # type: ignore[attr-defined]
