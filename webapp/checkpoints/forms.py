"""The filters of the list of checkpoints."""

from django import forms

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.runs.models import Run

RUNS_OFFERED = 200


class CheckpointFilter(forms.Form):
    """Everything is optional, and what cannot be read filters nothing."""

    q = forms.CharField(required=False)
    run = forms.CharField(required=False)
    kind = forms.ChoiceField(required=False, choices=Checkpoint.Kind.choices)
    passing = forms.BooleanField(required=False)  # those made for samples alone

    def apply(self, rows: CheckpointQuerySet) -> CheckpointQuerySet:
        self.is_valid()
        chosen = self.cleaned_data
        if not chosen.get("passing"):
            rows = rows.filter(is_ephemeral=False)
        if chosen.get("run"):
            rows = rows.filter(run=chosen["run"])
        if chosen.get("kind"):
            rows = rows.filter(kind=chosen["kind"])
        if chosen.get("q"):
            rows = rows.filter(name__icontains=chosen["q"])
        return rows


def offer_runs(actor: Actor) -> list[tuple[str, str]]:
    """The newest runs that saved something."""
    runs = Run.objects.in_project(actor).filter(checkpoints__isnull=False).distinct()
    return list(runs.values_list("pk", "name")[:RUNS_OFFERED])
