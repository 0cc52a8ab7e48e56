"""Names of the tasks that web code sends, and the one way to send them: after commit.

A gpu worker that listens is called through Redis instead (`events.call_worker`).
"""

import logging
from functools import partial

from celery import Celery, current_app
from django.db import transaction
from kombu.exceptions import OperationalError

TRAIN_RUN = "runs.train"
GPU_TURN = "gpu.turn"
ISOLATION_TEST = "gpu.isolation"
INGEST_VERSION = "datasets.ingest"
PREVIEW_VERSION = "datasets.preview"
ANALYSE_VERSION = "datasets.analyse"
GENERATE_PAIRS = "datasets.generate"
BUILD_SUITE = "evals.build"
EVALUATE = "evals.evaluate"
SETTLE_MOVES = "evals.settle_moves"
GRADE = "evals.grade"
RUN_PROGRAM = "evals.run_program"
EXPORT_CHECKPOINT = "checkpoints.export"
DELIVER = "accounts.deliver"
DIAGNOSE_RUN = "runs.diagnose"

GPU_QUEUE = "gpu.{name}"  # one queue for each gpu worker; `gpu` reaches any of them
ANY_GPU_QUEUE = "gpu"
CPU_QUEUE = "cpu"

logger = logging.getLogger(__name__)


def send_task(name: str, *args: str, queue: str = CPU_QUEUE, delay_seconds: float = 0) -> None:
    """Send once the rows it speaks of are committed. A lost message costs time, never work."""
    transaction.on_commit(partial(_send, name, args, queue, delay_seconds))


def _send(name: str, args: tuple[str, ...], queue: str, delay_seconds: float) -> None:
    app: Celery = current_app
    try:
        app.send_task(name, args=args, queue=queue, countdown=delay_seconds or None)
    except OperationalError as error:
        logger.warning("%s is announced later: %s", name, error)
