"""Every write to isolation tests: whoever may change something in a project may start one."""

from collections.abc import Mapping, Sequence

from django.db import IntegrityError, transaction
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.dispatch import GPU_QUEUE, ISOLATION_TEST, send_task
from webapp.core.errors import NotFound, UserError
from webapp.fleet.models import BaseModel, IsolationTest, Worker
from webapp.fleet.services import find_base_model
from webapp.fleet.workers import find_alive

KEPT = 200  # rows of the whole installation

Status = IsolationTest.Status


def start_isolation_test(*, actor: Actor, worker: str, base_model: str) -> IsolationTest:
    """One that has not ended is returned as it is: a worker does not make the same one twice."""
    check_can_write(actor)
    return request_isolation_test(actor=actor, worker=worker, base_model=base_model)


def request_isolation_test(*, actor: Actor | None, worker: str, base_model: str) -> IsolationTest:
    """`actor` None: somebody at the server's command line, who may do everything."""
    found = _find_trainer(worker)
    model = find_base_model(base_model)
    if model.pk not in (found.holds.get("shared_models") or []):
        raise UserError(
            f"The worker {worker} holds no {model.name} that runs share, at this moment: start or"
            " resume a LoRA run on it first.",
            field="base_model",
        )
    try:
        with transaction.atomic():
            test = IsolationTest.objects.create(
                worker=worker, base_model=model, user=actor.user if actor else None
            )
    except IntegrityError:
        return IsolationTest.objects.unfinished().get(worker=worker, base_model=model)
    _forget_old()
    _announce(test)
    return test


def _find_trainer(name: str) -> Worker:
    worker = find_alive(Worker.objects.filter(name=name, kind=Worker.Kind.GPU)).first()
    if worker is None:
        raise NotFound(f"There is no gpu worker {name} that is alive.")
    return worker


def _forget_old() -> None:
    kept = IsolationTest.objects.values_list("pk", flat=True)[:KEPT]
    IsolationTest.objects.exclude(pk__in=list(kept)).delete()


def _announce(test: IsolationTest) -> None:
    send_task(ISOLATION_TEST, test.pk, queue=GPU_QUEUE.format(name=test.worker))


def begin_isolation_test(*, test_id: str, worker: str) -> BaseModel | None:
    """None: another message of the same test came before, or it is over."""
    tests = IsolationTest.objects.filter(pk=test_id, worker=worker, status=Status.QUEUED)
    if tests.update(status=Status.RUNNING, started_at=now()) != 1:
        return None
    return IsolationTest.objects.select_related("base_model").get(pk=test_id).base_model


def finish_isolation_test(
    *,
    test_id: str,
    dtype: str,
    num_tokens: int,
    differences: Sequence[Mapping[str, object]],
    is_passed: bool,
    seconds: float,
) -> bool:
    """False: it was given up meanwhile."""
    running = IsolationTest.objects.filter(pk=test_id, status=Status.RUNNING)
    done = running.update(
        status=Status.DONE,
        dtype=dtype,
        num_tokens=num_tokens,
        differences=list(differences),
        is_passed=is_passed,
        seconds=seconds,
        ended_at=now(),
    )
    return done == 1


def fail_isolation_test(*, test_id: str, error: str) -> bool:
    tests = IsolationTest.objects.unfinished().filter(pk=test_id)
    return tests.update(status=Status.FAILED, error=error, ended_at=now()) == 1


def settle_isolation_tests() -> None:
    """Those of workers that are gone, or have begun anew, fail; others may have lost a message."""
    alive = {row.name: row for row in find_alive(Worker.objects.all())}
    for test in IsolationTest.objects.unfinished():
        worker = alive.get(test.worker)
        began = test.started_at
        if worker is None or (began is not None and worker.started_at > began):
            fail_isolation_test(
                test_id=test.pk, error=f"The worker {test.worker} was lost. Start the test again."
            )
        elif test.status == Status.QUEUED:
            _announce(test)
