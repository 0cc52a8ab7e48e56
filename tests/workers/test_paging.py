"""Idle runs leave the device for host memory or disk, by bytes, and go on as if they had stayed."""

from pathlib import Path
from shutil import copytree

import pytest
from django.db import OperationalError

from tests.webapp.cast import make_actor, make_run
from tests.workers.cast import TINY, Program, make_client_run, make_tiny, read_loss, take_turns
from training.memory import Memory, fit_model
from training.shapes import ModelShape
from training.types import LoraSpec
from webapp.fleet.models import Worker
from webapp.fleet.services import add_base_model, register_worker
from webapp.runs.models import Operation, Run
from workers import gauge
from workers.device import Device, Setup, beat
from workers.memory import Budget, count_bytes, plan_engine, read_budget

pytestmark = pytest.mark.django_db

RUN_BYTES = 38_912 * 4 * 4  # rank 4 on the tiny model: weights, gradients and two moments


def train_in_turn(memory: Budget) -> tuple[Device, list[list[float]]]:
    """Three programs, one after the other, twice; each leaves a gradient open in between."""
    first = Run.objects.count()
    device = Device(setup=Setup(name="w1", memory=memory))
    programs = [Program(run=make_client_run(first + number)) for number in range(3)]
    losses: list[list[float]] = [[] for _ in programs]
    for seed in range(3):
        for place, program in enumerate(programs):
            if seed:
                program.step()
            else:
                program.create()
            learned = program.learn(seed)
            take_turns(device)
            losses[place].append(read_loss(learned))
    return device, losses


def test_runs_that_page_to_host_memory_go_on_bit_for_bit() -> None:
    make_tiny()
    _, stayed = train_in_turn(Budget())
    device, moved = train_in_turn(Budget(runs=RUN_BYTES, host=100 * RUN_BYTES))
    assert moved == stayed
    assert [held.page is None for held in device.held.values()] == [False, False, True]
    assert sum(map(count_bytes, device.held.values())) == RUN_BYTES
    pages = [held.page for held in device.held.values() if held.page is not None]
    assert all(page.gradients is not None for page in pages)


def test_where_the_host_is_the_device_idle_runs_go_to_disk_and_go_on() -> None:
    make_tiny()
    _, stayed = train_in_turn(Budget())
    device, moved = train_in_turn(Budget(runs=RUN_BYTES))
    assert moved == stayed
    assert len(device.held) == 1


def test_host_memory_has_a_limit_too_and_the_longest_unused_leaves_it() -> None:
    make_tiny()
    device, _ = train_in_turn(Budget(runs=RUN_BYTES, host=RUN_BYTES + 1))
    first, second, third = Run.objects.order_by("created_at")
    assert list(device.held) == [second.pk, third.pk]
    first.refresh_from_db()
    assert first.worker == ""  # another worker may have it


def test_a_settled_run_is_saved_before_it_goes_to_disk() -> None:
    make_tiny()
    device = Device(setup=Setup(name="w1", memory=Budget(runs=1, host=1)))
    programs = [Program(run=make_client_run(number)) for number in range(2)]
    for program in programs:
        program.create()
        program.train(range(1))
        take_turns(device)
    first = programs[0].run
    first.refresh_from_db()
    assert first.autosave_seq == 2
    assert first.pk not in device.held


def test_a_beat_says_what_takes_how_much() -> None:
    make_tiny()
    register_worker(name="w1", kind="gpu", device="", memory_bytes=0, flops=0, pid=1)
    device, _ = train_in_turn(Budget(room=10**9, runs=RUN_BYTES, host=100 * RUN_BYTES))
    beat(device)
    memory = Worker.objects.get().holds["memory"]
    assert memory["base_models"] == 1_049_728 * 4
    assert memory["adapters"] == memory["optimizers"] == RUN_BYTES // 2
    assert (memory["num_paged"], memory["paged"]) == (2, 2 * RUN_BYTES)
    assert memory["room"] == 10**9
    assert memory["free"] > 0


def test_a_datum_too_long_for_the_device_is_refused_before_anything_is_allocated() -> None:
    base_model = make_tiny()
    memory = Memory(shape=ModelShape.read(Path(base_model.path)), spec=LoraSpec(rank=4))
    device = Device(setup=Setup(name="w1", memory=Budget(room=memory.predict(10).total)))
    program = Program()
    program.create()
    refused = program.learn(1)
    take_turns(device)
    refused.refresh_from_db()
    assert refused.status == Operation.Status.FAILED
    assert refused.error_category == "user"
    assert "datum 0 has 12 tokens" in refused.error
    assert "hold 10 of them for this run; send shorter ones" in refused.error


def test_a_run_without_room_for_one_token_is_refused_as_it_is_created() -> None:
    make_tiny()
    device = Device(setup=Setup(name="w1", memory=Budget(room=5_000_000)))
    program = Program()
    created = program.create(rank=512)
    take_turns(device)
    created.refresh_from_db()
    assert created.error_category == "user"
    assert "choose a smaller rank" in created.error


def test_the_passes_of_a_run_depend_on_the_size_of_a_device_and_on_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HONE_MEMORY_MB", "64")
    assert read_budget("cpu") == read_budget("cpu")
    make_tiny()
    run, budgets = make_client_run(), []
    for _ in range(2):
        device = Device(setup=Setup(name="w1", memory=read_budget("cpu")))
        budgets.append(device.open(run).token_budget)
    assert budgets[0] == budgets[1]
    assert 256 <= budgets[0] < 4096


def test_all_weights_of_a_model_train_with_less_memory_where_it_is_scarce() -> None:
    memory = Memory(shape=ModelShape.read(TINY), spec=LoraSpec(rank=0))
    scarce, ample = (memory.predict(num_tokens).total for num_tokens in (600, 20_000))
    shape = memory.shape
    fits = [fit_model(shape, "cpu", room, 4096, is_full=True) for room in (scarce, ample)]
    assert [fit.recompute for fit in fits] == [True, False]
    assert fits[0].token_budget >= 256
    assert fits[1].token_budget == 4096
    assert fit_model(shape, "cpu", scarce, 4096, is_full=False).recompute is False


def test_budgets_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MEMORY", "1000"), ("RUNS", "100"), ("HOST", "0")):
        monkeypatch.setenv(f"HONE_{name}_MB", value)
    assert read_budget("cpu") == Budget(room=1000 << 20, runs=100 << 20, host=0)


def test_without_a_budget_nothing_is_refused() -> None:
    assert plan_engine(Path("/nowhere"), Budget(), "cpu", 4096, is_full=False) is None


def test_the_peak_of_a_runs_largest_pass_is_measured_and_what_was_predicted_of_it() -> None:
    make_tiny()
    device = Device(setup=Setup(name="w1", memory=Budget(room=10**9)))
    program = Program()
    program.create()
    program.train(range(2))
    take_turns(device)
    run = Run.objects.get()
    memory = Memory(shape=ModelShape.read(TINY), spec=LoraSpec(rank=4))
    assert run.predicted_bytes == memory.predict(19).total
    assert run.peak_bytes is not None
    assert run.peak_bytes >= RUN_BYTES + 1_049_728 * 4


@pytest.mark.parametrize("name", ["workers.gauge.note", "workers.device.beat"])
def test_what_is_only_told_breaks_no_operation_where_the_database_does_not_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program()
    program.create()
    learned = program.learn(0)
    monkeypatch.setattr(name, raise_locked)
    take_turns(Device(setup=Setup(name="w1", memory=Budget(room=10**9))))
    assert read_loss(learned) > 0


def raise_locked(*_: object) -> None:
    raise OperationalError("database is locked")


def test_without_a_system_that_tells_its_peak_a_run_trains_unmeasured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gauge, "RESET", tmp_path / "nowhere" / "clear_refs")
    make_tiny()
    device = Device(setup=Setup(name="w1", memory=Budget(room=10**9)))
    program = Program()
    program.create()
    learned = program.learn(1)
    take_turns(device)
    assert read_loss(learned) > 0
    assert Run.objects.get().peak_bytes is None


def test_a_base_model_that_leaves_no_room_for_passes_takes_the_place_of_an_idle_one(
    tmp_path: Path,
) -> None:
    make_tiny()
    run = make_client_run()
    other = tmp_path / "other"
    copytree(TINY, other)
    base_model = add_base_model(path=str(other), names=["other"])
    second = make_run(make_actor("second"), base_model)
    models = [run.base_model_id, base_model.pk]
    for room, expected in ((12 * 10**6, models[1:]), (100 * 10**6, models)):
        device = Device(setup=Setup(name="w1", memory=Budget(room=room)))
        for each in (run, second):
            device.open(each)
        assert list(device.engines) == expected
