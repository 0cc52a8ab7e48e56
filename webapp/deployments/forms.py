"""Forms of serving: what a deployment serves, and what the playground asks."""

from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment
from webapp.deployments.services import DEFAULT_SEED
from webapp.fleet.models import BaseModel

CHECKPOINTS_OFFERED = 200

Choices = list[tuple[str, str | list[tuple[str, str]]]]


def offer_checkpoints(actor: Actor, *, base_model: str = "") -> Iterable[tuple[str, str]]:
    """The newest of the project, as a person tells them apart."""
    rows = Checkpoint.objects.in_project(actor).loadable().filter(is_ephemeral=False)
    if base_model:
        rows = rows.filter(base_model=base_model)
    newest = rows.select_related("run").defer("probe")[:CHECKPOINTS_OFFERED]
    return [(row.pk, f"{row.run.name} / {row.name} (step {row.step})") for row in newest]


def offer_aliases(actor: Actor) -> Iterable[tuple[str, str]]:
    """What each names now: whoever chooses one gets that checkpoint, wherever it moves then."""
    rows = Checkpoint.objects.in_project(actor).loadable().filter(aliases__isnull=False)
    named = rows.order_by("aliases__name").values_list(
        "pk", "aliases__name", "run__name", "name", "step"
    )
    return [(pk, f"{alias}: {run} / {name} (step {step})") for pk, alias, run, name, step in named]


def offer_base_models() -> list[tuple[str, str]]:
    rows = BaseModel.objects.prefetch_related("names")
    return [(row.pk, row.name) for row in rows]


def offer_targets(actor: Actor, *, with_deployments: bool = False) -> Choices:
    """Everything that can answer; an empty group is left out."""
    groups: Choices = [
        ("Aliases", list(offer_aliases(actor))),
        ("Checkpoints", list(offer_checkpoints(actor))),
        ("Base models", offer_base_models()),
    ]
    if with_deployments:
        running = Deployment.objects.in_project(actor).exclude(status=Deployment.Status.STOPPED)
        groups.insert(0, ("Deployments", list(running.values_list("pk", "name"))))
    return [group for group in groups if group[1]]


def make_replicas_field() -> forms.IntegerField:
    return forms.IntegerField(
        label="Replicas",
        initial=1,
        help_text="0: none runs until somebody asks; the first answer waits for its start.",
        error_messages={"required": "Say how many replicas; 0 lets it sleep until it is asked."},
    )


class ScaleForm(forms.Form):
    """How many servers hold a deployment. What is out of range is said by the service."""

    num_replicas = make_replicas_field()


class DeploymentForm(forms.Form):
    name = forms.CharField(
        max_length=80,
        help_text="Programs ask for it by this name; it stays when the checkpoint changes.",
        error_messages={"required": "A deployment needs a name."},
    )
    target = forms.ChoiceField(
        label="Serves", error_messages={"required": "Choose a checkpoint or a base model."}
    )
    num_replicas = make_replicas_field()

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["target"].choices = offer_targets(actor)  # type: ignore[attr-defined]


class ChangeForm(forms.Form):
    """Other weights of the same base model."""

    checkpoint = forms.ChoiceField(
        label="Serve", error_messages={"required": "Choose a checkpoint or the base model."}
    )
    transition = forms.ChoiceField(
        label="Answers under way",
        required=False,
        choices=[
            ("", "whichever way nobody waits"),
            ("async", "may go on with the new weights"),
            ("sync", "end on the old weights first"),
        ],
    )

    def __init__(
        self,
        *args: object,
        actor: Actor,
        deployment: Deployment,
        chosen: str = "",
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        offered = offer_checkpoints(actor, base_model=deployment.base_model_id)
        base = (deployment.base_model_id, f"{deployment.base_model.name} as it is")
        self.fields["checkpoint"].choices = [base, *offered]  # type: ignore[attr-defined]
        served = deployment.checkpoint_id or deployment.base_model_id
        self.fields["checkpoint"].initial = chosen or served


class StopField(forms.CharField):
    """Texts that end an answer, one a line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(strip=False, **kwargs)

    def clean(self, value: Any) -> list[str] | None:
        lines = super().clean(value).splitlines()
        return [unescape(line) for line in lines if line] or None

    def prepare_value(self, value: Any) -> Any:
        """A call's own stops, written as they were given."""
        return "\n".join(map(escape, value)) if isinstance(value, list) else value


def unescape(line: str) -> str:
    return line.replace("\\n", "\n").replace("\\t", "\t")


def escape(stop: str) -> str:
    return stop.replace("\n", "\\n").replace("\t", "\\t")


class KeepForm(forms.Form):
    """The dataset that an answer is kept in: one that is there, or a new name."""

    name = forms.CharField(
        max_length=120,
        label="Dataset",
        help_text="A known name gets a new version with one more row; a new one makes a dataset.",
        widget=forms.TextInput(attrs={"list": "datasets", "autocomplete": "off"}),
        error_messages={"required": "A dataset needs a name."},
    )


class PlaygroundForm(forms.Form):
    """One prompt for one or two models. What is out of range is said by the service."""

    left = forms.ChoiceField(label="Model")
    right = forms.ChoiceField(label="Beside", required=False)
    system = forms.CharField(
        required=False, label="System prompt", widget=forms.Textarea(attrs={"rows": 2})
    )
    prompt = forms.CharField(
        label="Message",
        strip=False,
        widget=forms.Textarea(
            attrs={"rows": 3, "placeholder": "Ask both the same. Ctrl+Enter sends."}
        ),
        error_messages={"required": "Write a message first."},
    )
    temperature = forms.FloatField(initial=0.0, help_text="0: always the likeliest token.")
    top_p = forms.FloatField(
        required=False,
        label="Top p",
        help_text="Draws from the likeliest tokens that together have this probability.",
    )
    top_k = forms.IntegerField(
        required=False, label="Top k", help_text="Draws from this many likeliest tokens."
    )
    max_tokens = forms.IntegerField(initial=256, label="Longest answer")
    seed = forms.IntegerField(initial=DEFAULT_SEED, help_text="Both draw the same numbers.")
    stop = StopField(
        required=False,
        label="Stop at",
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="One text a line; \\n is a line break.",
    )

    PARAMS: ClassVar = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop")

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        targets = offer_targets(actor, with_deployments=True)
        self.fields["left"].choices = targets  # type: ignore[attr-defined]
        self.fields["right"].choices = [("", "no second model"), *targets]  # type: ignore[attr-defined]
