"""How long a run will take, said before it begins."""

from dataclasses import dataclass

from django.db.models import Avg

from webapp.datasets.models import DatasetVersion, Preview
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.models import Run

CHARACTERS_A_TOKEN = 4.0  # of English text in the vocabularies of today's models
BYTES_A_ROW_OF_JSON = 40  # keys, quotes and braces that are not text
NUM_EARLIER_RUNS = 5

# Of a worker's measured matmul speed, what a whole training pass keeps: attention, norms, the
# vocabulary's softmax and the optimizer cost time that the 4 N below does not count.
EFFICIENCY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`basis` says in words where the number comes from."""

    seconds: float
    tokens_per_second: float
    basis: str


def estimate_seconds(
    *, base_model: BaseModel, num_tokens_per_step: float, steps: int
) -> Estimate | None:
    """None: nothing trained on this model here yet, and no worker has told its speed.

    A LoRA step costs about 4 N floating point operations a token, N being the model's weights:
    2 N for the forward pass (a multiplication and an addition for each weight), 2 N for the
    gradients of the activations. The other 2 N of full training, the gradients of the weights,
    fall away because the weights are frozen; A and B are under a hundredth of N.
    """
    speed, basis = _read_speed(base_model), "from earlier runs of this model here"
    if speed is None:
        speed, basis = _compute_speed(base_model), "from the worker's measured speed"
    if not speed:
        return None
    seconds = steps * num_tokens_per_step / speed
    return Estimate(seconds=seconds, tokens_per_second=speed, basis=basis)


def estimate_tokens(version: DatasetVersion, base_model: BaseModel) -> float:
    """Mean tokens of a row: counted where a preview was made, else from the text's length."""
    preview = Preview.objects.filter(version=version, base_model=base_model).first()
    mean = preview.stats.get("mean_tokens") if preview else None
    if mean:
        return float(mean)
    if not version.num_rows:
        return 0.0
    characters = max(version.size_bytes / version.num_rows - BYTES_A_ROW_OF_JSON, 1.0)
    return characters / CHARACTERS_A_TOKEN


def _read_speed(base_model: BaseModel) -> float | None:
    earlier = Run.objects.filter(base_model=base_model, tokens_per_second__gt=0)
    newest = list(earlier.order_by("-created_at").values_list("pk", flat=True)[:NUM_EARLIER_RUNS])
    mean: float | None = Run.objects.filter(pk__in=newest).aggregate(mean=Avg("tokens_per_second"))[
        "mean"
    ]
    return mean


def _compute_speed(base_model: BaseModel) -> float | None:
    worker = Worker.objects.filter(kind=Worker.Kind.GPU, flops__gt=0).order_by("-flops").first()
    if worker is None or not base_model.num_parameters:
        return None
    return EFFICIENCY * worker.flops / (4 * base_model.num_parameters)
