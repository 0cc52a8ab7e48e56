"""The tasks Celery calls. Each begins with a guarded update: a kick that comes twice is free."""

import logging
import uuid
from collections.abc import Callable

from training.errors import InvalidInput
from webapp.core import dispatch
from webapp.core.errors import DISK_FULL, UserError, is_disk_full
from webapp.evals import aliases
from workers import (
    analyses,
    diagnose,
    evaluate,
    exports,
    generate,
    ingest,
    lm_eval,
    recipe,
    webhooks,
)
from workers.celery import app

logger = logging.getLogger(__name__)


@app.task(name=dispatch.TRAIN_RUN)
def train_run(run_id: str) -> None:
    _outlive(recipe.train, recipe.fail, run_id)


@app.task(name=dispatch.INGEST_VERSION)
def ingest_version(version_id: str) -> None:
    _outlive(ingest.validate_version, ingest.fail, version_id)


@app.task(name=dispatch.PREVIEW_VERSION)
def preview_version(preview_id: str) -> None:
    _outlive(ingest.preview_version, ingest.fail_preview, preview_id)


@app.task(name=dispatch.ANALYSE_VERSION)
def analyse_version(analysis_id: str) -> None:
    _outlive(analyses.analyse, analyses.fail, analysis_id)


@app.task(name=dispatch.GENERATE_PAIRS)
def generate_pairs(generation_id: str) -> None:
    _outlive(generate.generate, generate.fail, generation_id)


@app.task(name=dispatch.BUILD_SUITE)
def build_suite(suite_id: str) -> None:
    _outlive(evaluate.build_suite, evaluate.fail_suite, suite_id)


@app.task(name=dispatch.EVALUATE)
def evaluate_checkpoint(evaluation_id: str) -> None:
    _outlive(evaluate.evaluate, evaluate.fail, evaluation_id)


@app.task(name=dispatch.SETTLE_MOVES)
def settle_moves(evaluation_id: str) -> None:
    aliases.settle_moves(evaluation_id)


@app.task(name=dispatch.GRADE)
def grade_evaluation(evaluation_id: str) -> None:
    _outlive(evaluate.grade_evaluation, evaluate.fail, evaluation_id)


@app.task(name=dispatch.RUN_PROGRAM)
def run_program(evaluation_id: str) -> None:
    _outlive(lm_eval.run_program, evaluate.fail, evaluation_id)


@app.task(name=dispatch.EXPORT_CHECKPOINT)
def export_checkpoint(export_id: str) -> None:
    _outlive(exports.make_export, exports.fail, export_id)


@app.task(name=dispatch.DIAGNOSE_RUN)
def diagnose_run(run_id: str) -> None:
    _outlive(diagnose.diagnose, diagnose.fail, run_id)


@app.task(name=dispatch.DELIVER)
def deliver() -> None:
    webhooks.deliver()


def _outlive(act: Callable[[str], None], fail: Callable[[str, str], None], row_id: str) -> None:
    """The process outlives the row: what went wrong is written on it, where people see it."""
    try:
        act(row_id)
    except (InvalidInput, UserError) as error:
        fail(row_id, str(error))
    except Exception as error:
        number = uuid.uuid4().hex[:8]
        logger.exception("%s: internal error %s", row_id, number)
        said = f"Internal error {number}: the worker's log says more."
        fail(row_id, DISK_FULL if is_disk_full(error) else said)
