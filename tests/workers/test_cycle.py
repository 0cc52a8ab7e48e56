"""Between two passes of a device: who ends, who comes, and whose turn it is."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any, cast

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.workers.cast import (
    TINY,
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_loss,
    take_turns,
)
from training.engine.core import Engine
from training.engine.cycle import Pack
from training.engine.tally import Tally
from webapp.accounts.models import Project
from webapp.core import events
from webapp.fleet.services import add_base_model
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from workers import news
from workers.device import Device
from workers.gpu import gather, run_turn
from workers.news import News

pytestmark = pytest.mark.django_db

LARGE = [make_datum(seed, 40) for seed in range(6)]


def is_done(operation: Operation) -> bool:
    operation.refresh_from_db()
    return operation.status == Operation.Status.DONE


def open_programs(count: int, device: Device) -> list[Program]:
    programs = [Program(run=make_client_run(number)) for number in range(count)]
    for program in programs:
        program.create()
    take_turns(device)
    return programs


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Pack]:
    seen: list[Pack] = []
    run_pack = Engine.run_pack

    def note_and_run(engine: Engine, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        seen.append(pack)
        run_pack(engine, pack, tallies)

    monkeypatch.setattr(Engine, "run_pack", note_and_run)
    return seen


def test_who_comes_late_is_in_the_next_pass_and_ends_before_the_large_one(
    packs: list[Pack],
) -> None:
    device = make_device(token_budget=80)
    slow, quick = open_programs(2, device)
    large = slow.learn_from(LARGE)
    run_turn(device)
    late = quick.learn(0)
    run_turn(device)
    assert set(packs[-1].runs) == {slow.run.pk, quick.run.pk}
    assert is_done(late)
    assert not is_done(large)
    take_turns(device)
    assert is_done(large)


def test_what_went_through_in_pieces_among_others_is_what_it_is_alone() -> None:
    device = make_device("shared", token_budget=60)
    programs = open_programs(3, device)
    told: list[list[Operation]] = [[], [], []]
    for number in range(3):
        for program, operations in zip(programs, told, strict=True):
            operations.append(program.learn_from(LARGE[: 2 + 2 * number]))
            program.step()
    take_turns(device)
    alone = Program(run=make_client_run(7))
    alone.create()
    expected = []
    for number in range(3):
        expected.append(alone.learn_from(LARGE[: 2 + 2 * number]))
        alone.step()
    take_turns(make_device("alone"))
    for operations in told:
        assert [read_loss(each) for each in operations] == pytest.approx(
            [read_loss(each) for each in expected], rel=1e-5
        )


def test_a_device_that_is_killed_between_the_passes_of_one_request_repeats_it() -> None:
    device = make_device(token_budget=80)
    (program,) = open_programs(1, device)
    program.train(range(1))
    take_turns(device)
    large = program.learn_from(LARGE)
    program.step()
    after = program.learn(3)
    for _ in range(2):
        run_turn(device)
    queue.release_worker(worker=device.setup.name)
    take_turns(make_device(token_budget=80))
    calm = Program(run=make_client_run(5))
    calm.create()
    calm.train(range(1))
    expected = [calm.learn_from(LARGE), calm.step(), calm.learn(3)]
    take_turns(make_device("calm", token_budget=80))
    assert read_loss(large) == read_loss(expected[0])
    assert read_loss(after) == read_loss(expected[2])


def test_a_pass_that_breaks_is_repeated_by_each_alone_and_a_third_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = make_device(token_budget=80)
    one, other, third = open_programs(3, device)
    run_pack = Engine.run_pack
    sizes: list[int] = []

    def break_pairs(engine: Engine, pack: Pack, tallies: Any) -> None:
        sizes.append(len(pack.runs))
        if {one.run.pk, other.run.pk} <= set(pack.runs):
            raise RuntimeError("these two never go together")
        run_pack(engine, pack, tallies)

    monkeypatch.setattr(Engine, "run_pack", break_pairs)
    third_asks = [third.learn_from(LARGE)]
    run_turn(device)
    asked = [one.learn(1), other.learn(1)]
    take_turns(device)
    losses = [read_loss(operation) for operation in asked]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert is_done(third_asks[0])
    assert sizes.count(3) == 1
    assert not device.suspects


def make_second_model(folder: Path) -> Any:
    copytree(TINY, folder / "copy")
    return add_base_model(path=str(folder / "copy"), names=["copy"])


def test_a_model_at_work_keeps_its_place_until_what_began_has_ended(
    packs: list[Pack], tmp_path: Path
) -> None:
    device = make_device(token_budget=80, max_models=1)
    first, guest = Program(), Program(run=make_client_run(1))
    Run.objects.filter(pk=guest.run.pk).update(base_model=make_second_model(tmp_path))
    for program in (guest, first):
        program.create()
        take_turns(device)
    large = first.learn_from(LARGE)
    run_turn(device)
    guest_asks = guest.learn(0)
    more = first.learn_from(LARGE)
    while not is_done(large):
        assert run_turn(device)
    assert not is_done(guest_asks)
    while not is_done(guest_asks):
        assert run_turn(device)
    assert not is_done(more)
    take_turns(device)
    assert read_loss(more) == pytest.approx(read_loss(large), rel=1e-5)
    assert all(len(pack.runs) == 1 for pack in packs)


def test_a_step_of_a_model_without_a_place_does_not_put_out_what_began(
    packs: list[Pack], tmp_path: Path
) -> None:
    device = make_device(token_budget=80, max_models=1)
    first, guest = Program(), Program(run=make_client_run(1))
    Run.objects.filter(pk=guest.run.pk).update(base_model=make_second_model(tmp_path))
    for program in (guest, first):
        program.create()
        take_turns(device)
    large = first.learn_from(LARGE)
    run_turn(device)
    step = guest.step()
    take_turns(device)
    assert is_done(large)
    assert is_done(step)
    assert [pack.runs for pack in packs] == [(first.run.pk,)] * 3


def test_steps_of_all_runs_come_before_the_next_pass_so_that_all_can_share_it(
    packs: list[Pack],
) -> None:
    device = make_device()
    programs = open_programs(4, device)
    for number, program in enumerate(programs):
        for _ in range(3):
            program.learn_from(LARGE[: number + 1])
            program.step()
    take_turns(device)
    assert [len(pack.runs) for pack in packs] == [4, 4, 4]


def test_who_asks_for_nothing_but_steps_does_not_keep_the_others_from_their_passes() -> None:
    device = make_device()
    busy, other = open_programs(2, device)
    for _ in range(20):
        busy.step()
    asked = other.learn(0)
    for _ in range(2):
        run_turn(device)
    assert is_done(asked)


def test_projects_are_served_by_their_shares_whatever_they_have_queued(packs: list[Pack]) -> None:
    device = make_device(token_budget=160)
    favoured, plain = open_programs(2, device)
    Project.objects.filter(runs=favoured.run).update(share=3)
    device.share_of.clear()
    for _ in range(10):
        favoured.learn_from(LARGE)
        plain.learn_from(LARGE)
    for _ in range(12):
        run_turn(device)
    served = Counter[str]()
    for pack in packs:
        served.update({run: pack.count_tokens(run) for run in pack.runs})
    ratio = served[favoured.run.pk] / served[plain.run.pk]
    assert ratio == pytest.approx(3, rel=0.15)


def test_a_busy_device_asks_the_database_for_work_only_where_there_is_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 0
    monkeypatch.setattr(news, "read_work_count", lambda: count)
    device = make_device(token_budget=80)
    slow, quick = open_programs(2, device)
    device.news = News(looked_at=1e12)
    slow.learn_from(LARGE)
    gather(device)
    with CaptureQueriesContext(connection) as queries:
        gather(device)
    assert device.pending.keys() == {slow.run.pk}
    assert not queries.captured_queries
    quick.learn(0)
    gather(device)
    assert device.pending.keys() == {slow.run.pk}
    count += 1
    gather(device)
    assert device.pending.keys() == {slow.run.pk, quick.run.pk}


def test_news_are_looked_for_once_a_second_and_where_no_count_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment, count = 100.0, cast("int | None", 5)
    monkeypatch.setattr("workers.news.time.monotonic", lambda: moment)
    monkeypatch.setattr(news, "read_work_count", lambda: count)
    seen = News()
    assert seen.has_come()
    assert not seen.has_come()
    moment += news.LOOK_SECONDS
    assert seen.has_come()
    assert not seen.has_come()
    count = None
    assert seen.has_come()
    assert seen.has_come()


def test_work_that_can_begin_is_counted_after_commit(
    monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    counted: list[str] = []
    monkeypatch.setattr(events, "connection", lambda: FakeCounter(counted))
    program = Program()
    with django_capture_on_commit_callbacks(execute=True):
        program.create()
    assert counted == [events.WORK]
    assert events.read_work_count() == 1


class FakeCounter:
    """Redis, as far as it counts."""

    def __init__(self, counted: list[str]) -> None:
        self.counted = counted

    def incr(self, key: str) -> None:
        self.counted.append(key)

    def get(self, key: str) -> bytes:
        return str(self.counted.count(key)).encode()
