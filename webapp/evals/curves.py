"""An evaluation on the curves of the run whose checkpoint it is of."""

from collections.abc import Mapping

from webapp.evals.models import Evaluation
from webapp.runs.annotations import annotate
from webapp.runs.history import name_score, record_metrics
from webapp.runs.records import Annotation


def draw_on_run(evaluation: Evaluation, scores: Mapping[str, float]) -> None:
    """On the curves of the run that saved the checkpoint, at its step."""
    checkpoint, run = evaluation.checkpoint, evaluation.run
    if checkpoint is None or run is None or checkpoint.run_id != run.pk:
        return
    name = evaluation.suite.name
    keys = {name_score(name, figure): value for figure, value in scores.items()}
    record_metrics(run, checkpoint.step, keys)
    first, score = next(iter(scores.items()))
    text = f"{name}: {first.replace('_', ' ')} {100 * score:.1f}%"
    annotate(run, checkpoint.step, Annotation.Kind.EVALUATION, text)
