"""Two programs and a dashboard's run on one device: in the same passes, as if each were alone."""

from collections.abc import Callable, Mapping

import pytest

from tests.workers.cast import Program, make_client_run, make_device, read_loss, take_turns
from tests.workers.test_recipe import TurnWaiter, drive, make_sft_run, read_curve
from training.engine.core import Engine
from training.engine.cycle import Pack
from training.engine.tally import Tally
from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

STEPS = range(5)
QUIET = {"sampling": {"prompts": [], "every": 0}, "checkpoint_every": 0, "evaluate_every": 0}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Which runs each pass of the engine held, from now on."""
    seen: list[set[str]] = []
    run_pack = Engine.run_pack

    def note_and_run(engine: Engine, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        seen.append(set(pack.runs))
        run_pack(engine, pack, tallies)

    monkeypatch.setattr(Engine, "run_pack", note_and_run)
    return seen


def make_programs(first: int) -> list[Program]:
    """Different ranks and seeds; each asks for all of its steps before one is done."""
    programs = [Program(run=make_client_run(first + index)) for index in range(2)]
    for index, program in enumerate(programs):
        program.create(rank=4 + 4 * index, seed=index)
    return programs


def ask(program: Program, number: int) -> Callable[[], list[float]]:
    operations = program.train(range(100 * number, 100 * number + len(STEPS)))
    operations.append(program.learn(7, forward_only=True))  # after the last step
    return lambda: [read_loss(operation) for operation in operations]


def run_apart(actor: Actor, version: DatasetVersion) -> tuple[list[list[float]], Run]:
    """One after the other: the next asks when the last has everything."""
    losses, device = [], make_device("alone")
    for number, program in enumerate(make_programs(10)):
        read = ask(program, number)
        take_turns(device)
        losses.append(read())
    ended = drive(make_sft_run(actor, version, **QUIET), TurnWaiter(device=device))
    return losses, ended


def test_two_programs_and_a_dashboards_run_share_passes_and_get_what_each_gets_alone(
    actor: Actor, version: DatasetVersion, passes: list[set[str]]
) -> None:
    alone, alone_on_the_page = run_apart(actor, version)
    assert {len(runs) for runs in passes} == {1}
    passes.clear()
    programs = make_programs(20)
    reads = [ask(program, number) for number, program in enumerate(programs)]
    device = make_device("shared")
    on_the_page = drive(make_sft_run(actor, version, **QUIET), TurnWaiter(device=device))
    take_turns(device)
    everybody = {*(program.run.pk for program in programs), on_the_page.pk}
    assert passes.count(everybody) >= 2
    for read, expected in zip(reads, alone, strict=True):
        assert read() == pytest.approx(expected, rel=1e-5)
    curve = read_curve(alone_on_the_page)
    assert len(curve) == 6
    assert read_curve(on_the_page) == pytest.approx(curve, rel=1e-5)


def test_a_run_whose_requests_cannot_be_computed_is_in_no_pass_and_takes_nobody_along(
    passes: list[set[str]],
) -> None:
    good, bad = make_programs(0)
    read = ask(good, 0)
    for _ in STEPS:
        bad.learn(0, loss_fn="no_such_loss")
        bad.step()
    take_turns(make_device("shared"))
    assert {good.run.pk} in passes
    assert not any(bad.run.pk in runs for runs in passes)
    alone = make_programs(10)[0]
    expected = ask(alone, 0)
    take_turns(make_device("alone"))
    assert read() == pytest.approx(expected(), rel=1e-5)
    assert Run.objects.get(pk=bad.run.pk).step == 0
