"""An operation that its worker does not survive: it ends by itself, and takes nobody with it."""

from collections.abc import Callable

import pytest

from tests.workers.cast import Kind, Program, make_client_run, make_device, read_loss, take_turns
from tests.workers.test_journal import restart
from training.engine.core import Engine
from training.engine.cycle import Pack
from webapp.runs import queue
from webapp.runs.models import Operation
from workers.device import Device
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[str, ...]]]:
    """Passes that hold the run end the process. Lists whose runs were in each of them."""
    run_pack = Engine.run_pack

    def watch(run_id: str) -> list[tuple[str, ...]]:
        deaths: list[tuple[str, ...]] = []

        def die_or_run(engine: Engine, pack: Pack, *rest: object) -> None:
            if run_id in pack.runs:
                deaths.append(pack.runs)
                raise SystemExit
            run_pack(engine, pack, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Engine, "run_pack", die_or_run)
        return deaths

    return watch


def live(device: Device) -> Device:
    """Until nothing is left, however often it dies."""
    while True:
        try:
            take_turns(device)
        except SystemExit:
            device = restart(device)
        else:
            return device


def test_a_pass_that_kills_is_tried_three_times_alone_and_its_neighbour_goes_on(
    deadly: Callable[[str], list[tuple[str, ...]]],
) -> None:
    bad, good = Program(run=make_client_run(0)), Program(run=make_client_run(1))
    for program in (bad, good):
        program.create()
    device = live(make_device())
    fatal, harmless = bad.learn(0), good.learn(1)
    bad.step()
    deaths = deadly(bad.run.pk)
    live(device)
    together, *alone = deaths
    assert set(together) == {bad.run.pk, good.run.pk}
    assert alone == [(bad.run.pk,)] * queue.MAX_TRIES
    assert read_loss(harmless) > 0
    fatal.refresh_from_db()
    assert (fatal.status, fatal.error_category) == (Operation.Status.FAILED, "server")
    assert "ended 3 times while it was at this operation" in fatal.error


def test_after_it_the_run_goes_on_without_its_gradients(
    deadly: Callable[[str], list[tuple[str, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program()
    program.create()
    device = live(make_device())
    program.learn(0)
    step = program.step()
    deadly(program.run.pk)
    device = live(device)
    monkeypatch.undo()
    step.refresh_from_db()
    assert (step.status, step.error_category) == (Operation.Status.FAILED, "user")
    after = program.learn(1)
    program.step()
    take_turns(device)
    assert read_loss(after) > 0


def test_a_save_that_kills_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    program.create()
    device = live(make_device())

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Engine, "save_weights", die)
    save = program.send(Kind.SAVE_WEIGHTS, name="heavy")
    live(device)
    save.refresh_from_db()
    assert (save.status, save.tries) == (Operation.Status.FAILED, queue.MAX_TRIES + 1)


def test_what_waited_beside_it_is_not_counted_again_and_again() -> None:
    program = Program()
    program.create()
    operations = [program.learn(number) for number in range(3)]
    device = make_device()
    run_turn(device)
    for _ in range(5):  # a worker that dies between two operations
        device = restart(device)
        queue.requeue_running(program.run, worker="nobody")
    assert {each.tries for each in Operation.objects.filter(run=program.run)} <= {0, 1}
    live(device)
    assert all(read_loss(operation) > 0 for operation in operations)
