"""The launch form: what a run learns from, how, and what it shows on the way."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from django import forms
from django.apps import apps

from training.recipes.config import FULL_SHARE, RecipeConfig
from training.types import MAX_RANK
from webapp.accounts.models import Actor
from webapp.core.bodies import parse_json
from webapp.core.errors import UserError
from webapp.core.forms import say_limits
from webapp.core.templatetags.hone import rate
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.grids import list_points, parse_grid
from webapp.runs.history import name_score

SMALL_MODEL = 500_000_000  # parameters; below, ten times the usual learning rate trains better
MAX_PROMPTS = 50
SCHEDULES = [("linear", "Linear to 0"), ("cosine", "Cosine to 0"), ("constant", "Constant")]
OVERLONG = [("truncate", "Cut them off"), ("drop", "Leave them out")]
SUITE = "suite"
EARLY_STOPS = [
    ("", "Never"),
    ("held_out_loss", "Once the held-out loss falls no more"),
    ("held_out/accuracy", "Once the held-out accuracy rises no more"),
    ("reward/mean", "Once the mean reward rises no more"),
    (SUITE, "Once the suite's score rises no more"),
]
LENGTHS = [("epochs", "epochs"), ("steps", "steps")]
LORA, FULL = "lora", "full"
WEIGHTS = [(LORA, "LoRA adapter"), (FULL, "All weights")]
PARTS = ("train_attn", "train_mlp", "train_unembed", "train_embed")
OF_ADAPTERS = ("rank", "alpha", *PARTS)
SHARED = (
    "learning_rate", "schedule", "warmup_steps", "weight_decay", "grad_clip_norm", "batch_size",
    "held_out_share", "seed", "checkpoint_every", "evaluate_every",
)  # fmt: skip


class LaunchForm(forms.Form):
    """What all methods share. Cleans to the recipe's config, key for key; the task that trains
    checks it once more.

    A method's form adds fields: those in OWN stand in a section of their own, those in OF_ROWS
    with the settings of rows. All go into the config as they are; `make_own` may say otherwise.
    """

    OWN: ClassVar[tuple[str, ...]] = ()
    OF_ROWS: ClassVar[tuple[str, ...]] = ()
    WORDS: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # label and help_text said otherwise
    TEMPLATE: ClassVar[str] = "runs/launch/own.html"  # of the own section
    TITLE: ClassVar[str] = ""  # and its heading

    dataset_version = forms.ModelChoiceField(
        queryset=DatasetVersion.objects.none(),
        label="Dataset",
        empty_label=None,
        error_messages={"invalid_choice": "Choose a version that is ready, of this project."},
    )
    base_model = forms.ModelChoiceField(
        queryset=BaseModel.objects.none(), label="Base model", empty_label=None
    )
    name = forms.CharField(
        max_length=120, required=False, help_text="Left empty: the dataset on the model."
    )
    weights = forms.ChoiceField(
        label="What learns", choices=WEIGHTS, initial=LORA, widget=forms.RadioSelect
    )
    with_optimizer = forms.BooleanField(
        required=False,
        label="Take the optimizer along",
        help_text="Goes on exactly where the checkpoint was saved. Off: its weights alone, with"
        " fresh moments.",
    )
    length = forms.FloatField(label="Train for", initial=1, min_value=0.01, max_value=1_000_000)
    length_unit = forms.ChoiceField(
        label="Unit",
        choices=LENGTHS,
        initial="epochs",
        widget=forms.Select(attrs={"aria-label": "Unit of the length"}),
    )
    batch_size = forms.IntegerField(
        initial=8, min_value=1, max_value=4096, help_text="Rows an optimizer step learns from."
    )
    learning_rate = forms.FloatField(
        initial=1e-4,
        min_value=1e-9,
        max_value=1,
    )
    rank = forms.IntegerField(
        label="LoRA rank",
        initial=32,
        min_value=1,
        max_value=MAX_RANK,
        help_text="Room for what is learned. 32 is enough for most datasets.",
    )

    alpha = forms.FloatField(
        label="LoRA alpha", initial=32, min_value=0.001, max_value=10_000,
        help_text="The adapter counts alpha / rank times.",
    )  # fmt: skip
    train_attn = forms.BooleanField(required=False, initial=True, label="Attention")
    train_mlp = forms.BooleanField(required=False, initial=True, label="MLP")
    train_unembed = forms.BooleanField(required=False, initial=False, label="Output head")
    train_embed = forms.BooleanField(required=False, initial=False, label="Input embedding")
    schedule = forms.ChoiceField(
        label="Schedule",
        choices=SCHEDULES,
        initial="linear",
        help_text="Of the learning rate, after the warm-up.",
    )
    warmup_steps = forms.IntegerField(
        label="Warm-up", initial=0, min_value=0, max_value=1_000_000,
        help_text="Steps over which the learning rate rises to its peak.",
    )  # fmt: skip
    weight_decay = forms.FloatField(initial=0, min_value=0, max_value=10)
    grad_clip_norm = forms.FloatField(
        label="Gradient clipping", initial=1, min_value=0, max_value=1e9,
        help_text="Longer gradients are shortened to this norm. 0: never.",
    )  # fmt: skip
    max_length = forms.IntegerField(
        label="Longest row", required=False, min_value=8, max_value=1_000_000,
        help_text="Left empty: the model's context.",
    )  # fmt: skip
    held_out_share = forms.FloatField(
        label="Held-out share", initial=0.1, min_value=0, max_value=0.9,
        help_text="Of the rows: never trained on, only measured. 0.1 is one row in ten, drawn anew"
        " where the version is one side of a split.",
    )  # fmt: skip
    seed = forms.IntegerField(
        initial=0, min_value=0, max_value=2**31 - 1,
        help_text="Same seed, rows and settings: the same run.",
    )  # fmt: skip
    evaluate_every = forms.IntegerField(
        label="Held-out loss every", initial=10, min_value=0, max_value=1_000_000,
        help_text="0: never.",
    )  # fmt: skip
    eval_suite: forms.ModelChoiceField[Any] = forms.ModelChoiceField(
        queryset=None,
        required=False,
        label="Eval suite",
        empty_label="None",
        help_text="Answered and graded by each checkpoint of the run.",
    )
    checkpoint_every = forms.IntegerField(
        label="Checkpoint every", initial=0, min_value=0, max_value=1_000_000,
        help_text="0: only at the end.",
    )  # fmt: skip
    sample_every = forms.IntegerField(
        label="Sample every", initial=10, min_value=0, max_value=1_000_000, help_text="0: never."
    )
    sample_tokens = forms.IntegerField(
        label="Longest answer", initial=64, min_value=1, max_value=32_768
    )
    temperature = forms.FloatField(
        initial=0, min_value=0, max_value=10, help_text="0: the likeliest token each time."
    )
    prompts = forms.CharField(
        required=False,
        label="Pinned prompts",
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="One a line, a text or a JSON list of messages. The model answers them while it"
        " learns. Left empty: the first held-out rows of the dataset.",
    )

    early_stop = forms.ChoiceField(
        label="Stop early",
        choices=EARLY_STOPS,
        required=False,
        initial="",
        help_text="What it learned is saved first.",
    )
    patience = forms.IntegerField(
        initial=3, min_value=1, max_value=10_000, help_text="So many in a row that were no better."
    )
    sweep = forms.CharField(
        required=False,
        label="Sweep over",
        widget=forms.Textarea(
            attrs={"rows": 3, "placeholder": "learning_rate: 1e-4, 3e-4\nseed: 1, 2, 3"}
        ),
        help_text="One setting a line with its values: every combination becomes a run, and they"
        " are compared on one page. Left empty: one run.",
    )

    def __init__(
        self,
        *args: Any,
        actor: Actor,
        kinds: Sequence[str],
        usual_rate: float = 1e-4,
        parent: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """`kinds`: of datasets that it may learn from; none: it needs no dataset."""
        super().__init__(*args, **kwargs)
        for name, words in self.WORDS.items():
            vars(self.fields[name]).update(words)
        self.fields["learning_rate"].help_text = (
            f"An adapter takes {rate(usual_rate)}, of a small model {rate(10 * usual_rate)};"
            " all weights take a tenth of it."
        )
        self.parent = parent
        if kinds:
            versions = DatasetVersion.objects.in_project(actor).select_related("dataset")
            self._field("dataset_version").queryset = versions.filter(
                status=DatasetVersion.Status.READY, kind__in=kinds
            ).order_by("-created_at")
        else:
            del self.fields["dataset_version"]
        suites = apps.get_model("evals", "EvalSuite").objects.in_project(actor)
        self._field("eval_suite").queryset = suites.filter(status="ready")
        models = BaseModel.objects.prefetch_related("names").filter(has_chat_template=True)
        self._field("base_model").queryset = models.order_by("added_at")
        for field in self.fields.values():
            if isinstance(field, forms.FloatField):
                field.widget.attrs["step"] = "any"
            if field.required and field.initial is not None:
                field.error_messages["required"] = f"Left empty: the usual is {field.initial}."
        if parent is not None:
            self._follow(parent)
        say_limits(self)

    def _field(self, name: str) -> forms.ModelChoiceField[Any]:
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        return field

    def _follow(self, parent: Any) -> None:
        """A branch keeps its parent's model and what learns of it: only those weights fit."""
        self._field("base_model").queryset = BaseModel.objects.filter(pk=parent.base_model_id)
        self.fields["weights"].initial = FULL if parent.is_full else LORA
        for name in ("weights", *OF_ADAPTERS):
            self.fields[name].disabled = True
        if not parent.is_full:
            for name in OF_ADAPTERS:
                shape = {"rank": parent.rank, **parent.run.lora}
                self.fields[name].initial = shape.get(name, self.fields[name].initial)
        if not parent.has_optimizer:
            self.fields["with_optimizer"].disabled = True

    def clean_prompts(self) -> list[Any]:
        lines = [line.strip() for line in self.cleaned_data["prompts"].splitlines()]
        prompts = [read_prompt(number, line) for number, line in enumerate(lines, 1) if line]
        if len(prompts) > MAX_PROMPTS:
            raise forms.ValidationError(
                f"There are {len(prompts)} prompts: give at most {MAX_PROMPTS}."
            )
        return prompts

    def clean_sweep(self) -> dict[str, list[Any]]:
        try:
            grid = parse_grid(self.cleaned_data["sweep"])
            if grid:
                list_points(grid, None)
        except UserError as error:
            raise forms.ValidationError(str(error)) from None
        return grid

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("early_stop") == SUITE and data.get("eval_suite") is None:
            self.add_error("early_stop", "Choose the eval suite whose score is watched.")
        elif data.get("early_stop") == SUITE and not data["eval_suite"].graders:
            self.add_error("early_stop", "Nothing grades that suite: it has no score to watch.")
        length = data.get("length")
        if data.get("length_unit") == "steps" and length is not None and length % 1:
            self.add_error("length", "Steps are whole: give a whole number, or count in epochs.")
        if data.get("length_unit") == "epochs" and length is not None and length > 1000:
            self.add_error("length", "At most 1,000 epochs: for more, count in steps.")
        if data.get("weights") == FULL:
            self._ignore_adapter()
        elif not any(data.get(name) for name in PARTS):
            self.add_error("train_attn", "Nothing would learn: choose at least one part.")
        return data

    def _ignore_adapter(self) -> None:
        """Its fields are hidden where all weights learn: a mistake in one is nobody's."""
        for name in OF_ADAPTERS:
            self.errors.pop(name, None)

    @property
    def is_full(self) -> bool:
        """Valid forms only."""
        return bool(self.cleaned_data["weights"] == FULL)

    @property
    def version(self) -> DatasetVersion | None:
        """Valid forms only."""
        version: DatasetVersion | None = self.cleaned_data.get("dataset_version")
        return version

    @property
    def own_fields(self) -> Iterator[forms.BoundField]:
        return (self[name] for name in self.OWN)

    @property
    def row_fields(self) -> Iterator[forms.BoundField]:
        return (self[name] for name in self.OF_ROWS)

    def make_own(self) -> dict[str, Any]:
        """What the method's own fields say, as the config has it. Left out: what was left empty."""
        given = {name: self.cleaned_data[name] for name in self.OWN + self.OF_ROWS}
        return {name: value for name, value in given.items() if value is not None}

    def make_config(self) -> dict[str, Any]:
        """The recipe's config, as REST takes it."""
        data = self.cleaned_data
        of_adapters = () if self.is_full else OF_ADAPTERS
        shared = {name: data[name] for name in of_adapters + SHARED}
        config: dict[str, Any] = {"rank": 0, **shared, **self.make_own()}
        is_steps = data["length_unit"] == "steps"
        config[data["length_unit"]] = int(data["length"]) if is_steps else data["length"]
        if data["eval_suite"] is not None:
            config["eval_suite"] = data["eval_suite"].pk
        if data["early_stop"]:
            config["early_stop"] = self._make_early_stop()
        if data["max_length"] is not None:
            config["max_length"] = data["max_length"]
        config["sampling"] = {
            "prompts": data["prompts"],
            "every": data["sample_every"],
            "max_tokens": data["sample_tokens"],
            "temperature": data["temperature"],
        }
        return config

    def _make_early_stop(self) -> dict[str, Any]:
        metric, suite = self.cleaned_data["early_stop"], self.cleaned_data["eval_suite"]
        if metric == SUITE:
            metric = name_score(suite.name, suite.first_grader)
        is_loss = metric == "held_out_loss"
        patience = self.cleaned_data["patience"]
        return {"metric": metric, "patience": patience, "higher_is_better": not is_loss}


class SftForm(LaunchForm):
    """Supervised fine-tuning adds next to nothing: it is what the others are compared with."""

    OF_ROWS = ("overlong",)

    overlong = forms.ChoiceField(label="Longer rows", choices=OVERLONG, initial="truncate")


def read_prompt(number: int, line: str) -> Any:
    """A line is a text, or a JSON list of messages where it begins like one."""
    if not line.startswith("["):
        return line
    try:
        messages = parse_json(line.encode())
    except UserError:
        raise forms.ValidationError(
            f"Line {number} begins like a JSON list, and is none."
        ) from None
    is_good = bool(messages) and all(
        isinstance(message, dict)
        and message.keys() >= {"role", "content"}
        and all(isinstance(text, str) for text in message.values())
        for message in messages
    )
    if not is_good:
        raise forms.ValidationError(
            f"Line {number}: every message needs a role and a content, both texts."
        )
    return messages


def offer_rates(base_model: BaseModel | None, config: type[RecipeConfig]) -> dict[str, float]:
    """The usual learning rate of a method, by what learns."""
    is_small = base_model is not None and 0 < base_model.num_parameters < SMALL_MODEL
    usual = config.find_usual_rate() * (10 if is_small else 1)
    return {LORA: float(f"{usual:.6g}"), FULL: float(f"{usual * FULL_SHARE:.6g}")}
