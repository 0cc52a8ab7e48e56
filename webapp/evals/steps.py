"""The score of a run's checkpoints against their steps, with intervals, and its drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Count, Q

from webapp.accounts.models import Actor
from webapp.evals.answers import read_answers
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.paired import estimate_mean
from webapp.runs.models import Run

MOST_POINTS = 200
WIDTH, HEIGHT = 1100, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 64, 12, 28
TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checkpoint's mean, with its 95 % interval over items."""

    step: int
    evaluation: Evaluation
    num_items: int
    score: float
    low: float
    high: float

    @property
    def is_base(self) -> bool:
        return self.evaluation.checkpoint is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point where it is drawn."""

    point: Point
    x: float
    y: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    marks: Sequence[Mark]
    line: str  # of an SVG polyline
    band: str  # of an SVG polygon
    rows: Sequence[tuple[float, str]]  # where a grid line lies, and what stands beside it
    columns: Sequence[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def list_runs(actor: Actor) -> list[Run]:
    """Those whose checkpoints were evaluated, the newest first."""
    done = Q(checkpoints__evaluations__status=Evaluation.Status.DONE)
    rows = Run.objects.in_project(actor).annotate(num_done=Count("pk", filter=done))
    return list(rows.filter(num_done__gt=0).order_by("-created_at")[:MOST_POINTS])


def list_suites(run: Run) -> list[EvalSuite]:
    """That its checkpoints were evaluated on."""
    done = Evaluation.objects.filter(checkpoint__run=run, status=Evaluation.Status.DONE)
    rows = EvalSuite.objects.filter(pk__in=done.values("suite")).defer("items")
    return list(rows.order_by("name"))


def read_points(run: Run, suite: EvalSuite, grader: str) -> list[Point]:
    """The newest evaluation at each step; the base model as it is stands at step 0."""
    done = Evaluation.objects.filter(suite=suite, status=Evaluation.Status.DONE)
    rows = done.filter(
        Q(checkpoint__run=run) | Q(checkpoint=None, base_model=run.base_model_id)
    ).select_related("suite", "checkpoint__run", "base_model")
    newest: dict[int, Evaluation] = {}
    for each in rows.defer("suite__items", "checkpoint__probe"):
        newest.setdefault(each.checkpoint.step if each.checkpoint else 0, each)
    points = [_make_point(step, newest[step], grader) for step in sorted(newest)[:MOST_POINTS]]
    return [point for point in points if point is not None]


def _make_point(step: int, evaluation: Evaluation, grader: str) -> Point | None:
    """None: nothing of it was graded by this one."""
    scores = tuple(answer.score for answer in read_answers(evaluation, grader).values())
    if not scores:
        return None
    low, high = estimate_mean(scores)
    return Point(
        step=step,
        evaluation=evaluation,
        num_items=len(scores),
        score=sum(scores) / len(scores),
        low=low,
        high=high,
    )


def draw(points: Sequence[Point]) -> Drawing:
    """Steps from the first to the last; scores from the lowest end of an interval to the highest,
    in round tenths."""
    first, last = points[0].step, points[-1].step
    floor = max(0.0, int(min(point.low for point in points) * 10) / 10)
    ceiling = min(1.0, (int(max(point.high for point in points) * 10) + 1) / 10)

    def place_x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def place_y(score: float) -> float:
        share = (score - floor) / (ceiling - floor or 1)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    marks = [
        Mark(
            point=point,
            x=place_x(point.step),
            y=place_y(point.score),
            top=place_y(point.high),
            bottom=place_y(point.low),
        )
        for point in points
    ]
    steps = sorted({first + round((last - first) * part / TICKS) for part in range(TICKS + 1)})
    num_tenths = round((ceiling - floor) * 10)
    apart = 1 if num_tenths <= TICKS else 2
    scores = [floor + part / 10 for part in range(0, num_tenths + 1, apart)]
    edges = [f"{mark.x},{mark.top}" for mark in marks]
    edges += [f"{mark.x},{mark.bottom}" for mark in reversed(marks)]
    return Drawing(
        marks=marks,
        line=" ".join(f"{mark.x},{mark.y}" for mark in marks),
        band=" ".join(edges),
        rows=[(place_y(score), f"{100 * score:.0f} %") for score in scores],
        columns=[(place_x(step), f"{step:,}") for step in steps],
    )
