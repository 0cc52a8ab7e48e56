"""Whether a run ends before its last step: early, by its own rule, or because somebody asked."""

from django.db import transaction

from training.recipes.early_stop import Best, EarlyStop, find_end
from webapp.runs import driving
from webapp.runs.annotations import annotate
from webapp.runs.models import Run
from webapp.runs.records import Annotation
from webapp.runs.services import add_log


def ends_early(run: Run, rule: EarlyStop | None, step: int, *, is_replay: bool) -> bool:
    """Bound to the step that decided: a replay ends there too, whatever was measured since."""
    if rule is None:
        return False
    if (decided := driving.read_early_end(run)) is not None:
        return decided == step
    best = None if is_replay else find_end(read_points(run, rule.metric, step), rule)
    if best is None:
        return False
    note_end(run, rule, best, step)
    return True


def read_points(run: Run, metric: str, step: int) -> list[tuple[int, float]]:
    rows = run.metrics.filter(key=metric, step__lte=step).order_by("step")
    return list(rows.values_list("step", "value"))


@transaction.atomic
def note_end(run: Run, rule: EarlyStop, best: Best, step: int) -> None:
    driving.record_early_end(run, step)
    text = (
        f"Stopped early: {rule.metric} was best at step {best.step} ({best.value:.4g}), and none of"
        f" the {best.num_since} measurements since was better."
    )
    add_log(run, text, step=step)
    annotate(run, step, Annotation.Kind.STEERING, "stopped early")
