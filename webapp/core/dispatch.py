"""Names of the tasks that web code sends, and the one way to send them: after commit."""

from celery import Celery, current_app
from django.db import transaction

TRAIN_RUN = "runs.train"
GPU_TURN = "gpu.turn"
INGEST_VERSION = "datasets.ingest"
PREVIEW_VERSION = "datasets.preview"
BUILD_SUITE = "evals.build"
EVALUATE = "evals.evaluate"

GPU_QUEUE = "gpu.{name}"  # one queue for each gpu worker; `gpu` reaches any of them
ANY_GPU_QUEUE = "gpu"
CPU_QUEUE = "cpu"


def send_task(name: str, *args: str, queue: str = CPU_QUEUE, delay_seconds: float = 0) -> None:
    """Send once the rows it speaks of are committed. A lost message costs time, never work."""
    app: Celery = current_app
    transaction.on_commit(
        lambda: app.send_task(name, args=args, queue=queue, countdown=delay_seconds or None)
    )
