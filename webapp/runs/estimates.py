"""How long a run will take, said before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from django.db.models import Q

from training.errors import InvalidInput
from training.shapes import ModelShape
from webapp.datasets.models import DatasetVersion, Preview
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.models import Run

CHARACTERS_A_TOKEN = 4.0  # of English text in the vocabularies of today's models
BYTES_A_ROW_OF_JSON = 40  # keys, quotes and braces that are not text
NUM_EARLIER_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a training step compares with the matmul that a worker has measured.

    `share` of that speed is what a whole pass keeps: attention, norms and the vocabulary's softmax
    cost time that the 4 N or 6 N below does not count. `overhead` is what a step of any size takes.
    """

    share: float
    overhead: float  # seconds


# On two CPU cores: 0.4 to 0.65 of the speed with 135M weights; 0.06 s a step where one million
# weights cost next to nothing.
FAST = Pace(share=0.65, overhead=0.03)
USUAL = Pace(share=0.5, overhead=0.05)
SLOW = Pace(share=0.25, overhead=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`basis` says in words where the numbers come from; it lasts from `least` to `most`."""

    seconds: float
    least_seconds: float
    most_seconds: float
    tokens_per_second: float
    basis: str

    @property
    def is_wide(self) -> bool:
        return self.most_seconds > 1.25 * self.least_seconds


def estimate_seconds(
    *,
    base_model: BaseModel,
    num_tokens_per_step: float,
    steps: int,
    is_full: bool = False,
    passes: float = 1.0,
) -> Estimate | None:
    """`passes`: over the tokens of a step, forward and backward. None: nothing trained on this
    model here yet, and no worker has told its speed."""
    num_tokens = steps * num_tokens_per_step
    speeds = _read_speeds(base_model, is_full)
    if speeds:
        return _estimate_from_runs([speed / passes for speed in speeds], num_tokens)
    compute = _compute_step(base_model, num_tokens_per_step * passes, is_full)
    if not compute:
        return None
    least, usual, most = (
        steps * (compute / pace.share + pace.overhead) for pace in (FAST, USUAL, SLOW)
    )
    return Estimate(
        seconds=usual,
        least_seconds=least,
        most_seconds=most,
        tokens_per_second=num_tokens / usual,
        basis="from the worker's measured speed, until a run has shown how fast it is",
    )


def _estimate_from_runs(speeds: Sequence[float], num_tokens: float) -> Estimate:
    mean = sum(speeds) / len(speeds)
    return Estimate(
        seconds=num_tokens / mean,
        least_seconds=num_tokens / max(speeds),
        most_seconds=num_tokens / min(speeds),
        tokens_per_second=mean,
        basis="from earlier runs of this model here",
    )


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


def _read_speeds(base_model: BaseModel, is_full: bool) -> list[float]:
    """Of runs of the same kind: where all weights learn, a token costs half as much again."""
    kind = Q(rank=0) if is_full else Q(rank__gt=0)
    earlier = Run.objects.filter(kind, base_model=base_model, tokens_per_second__gt=0)
    newest = earlier.order_by("-created_at").values_list("tokens_per_second", flat=True)
    return [speed for speed in newest[:NUM_EARLIER_RUNS] if speed]


def _compute_step(base_model: BaseModel, num_tokens: float, is_full: bool) -> float:
    """Seconds of a step at the full speed of the fastest worker; 0 where nothing is known.

    A LoRA step costs about 4 N floating point operations a token, N being the model's weights:
    2 N for the forward pass (a multiplication and an addition for each weight), 2 N for the
    gradients of the activations. The other 2 N of full training, the gradients of the weights,
    fall away because the weights are frozen; A and B are under a hundredth of N. Where all
    weights learn it is the whole 6 N, and the optimizer's pass over N is lost in it. Of experts
    only those count that a token meets.
    """
    worker = Worker.objects.filter(kind=Worker.Kind.GPU, flops__gt=0).order_by("-flops").first()
    if worker is None:
        return 0.0
    operations = 6 if is_full else 4
    num_met = base_model.num_parameters * _find_share(base_model)
    return operations * num_met * num_tokens / worker.flops


def _find_share(base_model: BaseModel) -> float:
    """Of a model's weights, those that a token meets; all, where its folder cannot be read."""
    try:
        return ModelShape.read(Path(base_model.path)).active_share
    except InvalidInput:
        return 1.0
