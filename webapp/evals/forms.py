"""Forms of evaluations: a suite, and what to evaluate on it."""

from typing import Any, ClassVar

from django import forms

from webapp.accounts.models import Actor
from webapp.core.forms import StorableJSONField
from webapp.datasets.models import DatasetVersion
from webapp.deployments.forms import offer_targets
from webapp.evals.checks import BUILT_IN
from webapp.evals.models import EvalSuite

SOURCES = (
    ("dataset", "Rows of a dataset"),
    ("reasoning_gym", "Tasks of reasoning-gym"),
    ("built_in", "Built in"),
)
BUILT_IN_LABELS = {
    "bfcl_simple": "Function calls: 400 of the Berkeley leaderboard",
    "one_digit_sums": "One-digit sums: 100 questions",
}
# Short to generate, with scorers that run nothing; any other task can be typed.
TASKS = (
    "basic_arithmetic", "chain_sum", "countdown", "family_relationships", "gcd", "gsm_symbolic",
    "knights_knaves", "lcm", "leg_counting", "letter_counting", "mini_sudoku", "number_filtering",
    "products", "simple_equations", "spell_backward", "syllogism", "word_sorting",
)  # fmt: skip
GRADERS_OF = {"dataset": "exact_match", "reasoning_gym": "reasoning_gym", "built_in": "numeric"}


def offer_versions(actor: Actor) -> list[tuple[str, str]]:
    ready = DatasetVersion.objects.in_project(actor).filter(status=DatasetVersion.Status.READY)
    rows = ready.select_related("dataset").defer("report").order_by("-created_at")
    return [(row.pk, f"{row} ({row.num_rows:,} row{'s'[: row.num_rows != 1]})") for row in rows]


class SuiteForm(forms.Form):
    """Where items come from and how answers are sampled; frozen once made."""

    name = forms.CharField(max_length=120, error_messages={"required": "A suite needs a name."})
    dataset_version = forms.ChoiceField(
        label="Rows of", error_messages={"required": "Choose a dataset version."}
    )
    held_out_share = forms.FloatField(
        label="Held-out share",
        initial=0.1,
        help_text="The rows that a run with this share and seed never trains on; 1 is every row.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0, "max": 1}),
    )
    seed = forms.IntegerField(label="Split seed", initial=0)
    limit = forms.IntegerField(
        label="At most", initial=100, required=False, help_text="Empty: all of them."
    )
    task = forms.CharField(
        max_length=60,
        widget=forms.TextInput(attrs={"list": "tasks", "autocomplete": "off"}),
        help_text="Its rows are made by the seed: the same for the same seed.",
        error_messages={"required": "Name a task, such as chain_sum."},
    )
    size = forms.IntegerField(label="How many", initial=100)
    task_seed = forms.IntegerField(label="Seed", initial=0)
    config = StorableJSONField(
        required=False,
        label="Settings of the task",
        help_text='Such as {"min_terms": 2, "max_terms": 2}.',
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false"}),
    )
    built_in = forms.ChoiceField(
        label="Suite", choices=[(name, BUILT_IN_LABELS[name]) for name in BUILT_IN]
    )
    num_samples = forms.IntegerField(
        label="Samples of each",
        initial=1,
        help_text="More than one wants a temperature above 0.",
    )
    pass_at = forms.CharField(
        required=False,
        label="pass@k for k =",
        widget=forms.TextInput(attrs={"placeholder": "1, 4"}),
        help_text="That one of k samples is right. Empty: 1, 2, 4 ... and all.",
    )
    max_tokens = forms.IntegerField(label="Longest answer", initial=256)
    temperature = forms.FloatField(
        initial=0.0,
        help_text="0: greedy, so that the same weights give the same answers.",
        widget=forms.NumberInput(attrs={"step": "any", "min": 0}),
    )
    sampling_seed = forms.IntegerField(label="Sampling seed", initial=0)

    OWN: ClassVar = {
        "dataset": ("dataset_version", "held_out_share", "seed", "limit"),
        "reasoning_gym": ("task", "size", "task_seed", "config"),
        "built_in": ("built_in",),
    }
    SAMPLING: ClassVar = {
        "max_tokens": "max_tokens",
        "temperature": "temperature",
        "seed": "sampling_seed",
        "num_samples": "num_samples",
    }

    def __init__(self, *args: Any, actor: Actor, source: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source = source
        self.fields["dataset_version"].choices = offer_versions(actor)  # type: ignore[attr-defined]
        for other in {name for own in self.OWN.values() for name in own} - {*self.OWN[source]}:
            del self.fields[other]

    def clean_pass_at(self) -> list[int]:
        said = self.cleaned_data["pass_at"].replace(",", " ").split()
        if not all(each.isdecimal() and len(each) < 4 for each in said):
            raise forms.ValidationError("Give whole numbers with commas between, such as 1, 4.")
        return [int(each) for each in said]

    def write_sampling(self) -> dict[str, Any]:
        wanted = {name: self.cleaned_data[field] for name, field in self.SAMPLING.items()}
        return wanted | {"pass_at": self.cleaned_data["pass_at"]}

    def write_spec(self) -> dict[str, Any]:
        """Where items come from, if not from a dataset."""
        chosen = self.cleaned_data
        if self.source == "reasoning_gym":
            own = {"task": chosen["task"], "size": chosen["size"], "seed": chosen["task_seed"]}
            return {"source": "reasoning_gym", **own, "config": chosen["config"] or {}}
        if self.source == "built_in":
            return {"source": "built_in", "name": chosen["built_in"]}
        return {}


class EvaluationForm(forms.Form):
    """What to evaluate on which suite."""

    suite = forms.ChoiceField(error_messages={"required": "Choose a suite."})
    target = forms.ChoiceField(
        label="Weights", error_messages={"required": "Choose a checkpoint or a base model."}
    )
    is_fresh = forms.BooleanField(
        required=False,
        label="Ask everything again",
        help_text="Else answers that are known of the same weights are taken over.",
    )

    def __init__(self, *args: object, actor: Actor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        suites = EvalSuite.objects.in_project(actor).exclude(status=EvalSuite.Status.FAILED)
        self.fields["suite"].choices = list(suites.values_list("pk", "name"))  # type: ignore[attr-defined]
        self.fields["target"].choices = offer_targets(actor)  # type: ignore[attr-defined]
