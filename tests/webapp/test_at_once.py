"""What several do at one moment, each with a connection of its own: on PostgreSQL nobody waits by
itself, and whoever takes rows in another order than others waits for ever."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django.utils.timezone import now
from pytest_django import Settings

from tests.webapp.cast import make_actor, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import create_version
from webapp.deployments import services
from webapp.deployments.models import DeploymentChange
from webapp.runs import queue
from webapp.runs.history import read_metrics, record_metrics
from webapp.runs.models import Operation
from webapp.runs.services import note

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 8
Act = Callable[[], Any]


def do_at_once(*acts: Act) -> list[Any]:
    """What each of them returned; what one of them raised is raised."""
    begin = Barrier(len(acts))

    def do(act: Act) -> Any:
        try:
            begin.wait(timeout=60)
            return act()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(acts)) as threads:
        return list(threads.map(do, acts))


def test_a_worker_that_starts_again_leaves_alone_what_another_one_has_taken_over() -> None:
    run = make_run(make_actor())
    queue.submit_operation(run, seq=0, kind=Operation.Kind.OPTIM_STEP, payload=b"x")

    def take_over() -> int:
        taken = queue.lease_run(run, worker="b#1")
        return len(queue.next_operations(run, worker="b#1")) if taken else 0

    for _ in range(ROUNDS):
        run.worker, run.lease_until = "a#1", now() - timedelta(seconds=1)
        run.save(update_fields=["worker", "lease_until"])
        Operation.objects.update(status=Operation.Status.QUEUED, worker="")
        _, num_begun = do_at_once(lambda: queue.release_worker(worker="a"), take_over)
        operation = Operation.objects.get()
        assert num_begun == 1
        assert (operation.status, operation.worker) == (Operation.Status.RUNNING, "b#1")


def test_a_deployment_is_changed_while_its_last_change_is_settled_and_nobody_waits_for_ever() -> (
    None
):
    alice = make_actor()
    run = make_run(alice)
    first, second = make_checkpoint(run), make_checkpoint(run, name="next", seq=21)
    deployment = services.create_deployment(actor=alice, name="one", checkpoint=first)

    def change() -> DeploymentChange:
        return services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=second)

    for _ in range(ROUNDS):
        do_at_once(change, partial(services.settle_change, change()))
        waiting = DeploymentChange.objects.filter(status=DeploymentChange.Status.LOADING)
        assert waiting.count() == 1


def test_one_number_is_one_operation_and_one_version(settings: Settings, tmp_path: Any) -> None:
    settings.HONE_HOME = tmp_path
    alice = make_actor()
    run = make_run(alice)

    def submit() -> int:
        kind = Operation.Kind.OPTIM_STEP
        return queue.submit_operation(run, seq=0, kind=kind, payload=b"x").pk

    def upload() -> DatasetVersion:
        file = ContentFile(b"{}\n", name="rows.jsonl")
        return create_version(actor=alice, name="rows", upload=file)

    assert len(set(do_at_once(*[submit] * 4))) == 1
    assert sorted(version.number for version in do_at_once(*[upload] * 4)) == [1, 2, 3, 4]


def test_a_page_that_asks_for_what_follows_misses_no_number_of_a_run() -> None:
    run = make_run(make_actor())
    num_writers, num_steps = 3, 15
    seen: set[int] = set()
    ended: list[int] = []

    def write(first: int) -> None:
        try:
            for step in range(first, first + num_steps):
                with transaction.atomic():
                    record_metrics(run, step, {"loss": 1.0, "epoch": 1.0})
        finally:
            ended.append(first)

    def read() -> None:
        last = 0
        while len(ended) < num_writers:
            last = take(last)
        take(last)

    def take(last: int) -> int:
        history = read_metrics(run, ["loss"], after_id=last)
        seen.update(point.step for point in history.series.get("loss", ()))
        return history.last_id

    do_at_once(read, *[partial(write, 100 * number) for number in range(num_writers)])
    assert len(seen) == num_writers * num_steps


def test_two_notes_of_one_run_are_both_kept() -> None:
    run = make_run(make_actor())
    names = [f"note {number}" for number in range(4)]
    do_at_once(*[partial(note, run, name, "text") for name in names])
    run.refresh_from_db()
    assert sorted(run.notes) == names
