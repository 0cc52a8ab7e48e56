"""A worker of two ranks: its runs go on from the journal like any other's."""

from collections.abc import Iterator

import pytest

from tests.workers.cast import Program, make_client_run, make_device, read_loss, take_turns
from tests.workers.test_full_parameter import make_full
from training.engine.lead import Lead, LeadEngine
from training.engine.ranks import Plan
from training.errors import InvalidInput
from training.memory import fit_model
from training.shapes import ModelShape
from training.types import LoraSpec
from webapp.fleet.models import Worker
from workers.device import Device, Setup, register, unregister
from workers.memory import read_budget
from workers.ranks import read_plan

pytestmark = pytest.mark.django_db

PLAN = Plan(size=2, limit_seconds=60.0)
LARGE = {  # as one of 70 billion parameters
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def fail(why: str) -> None:
    raise AssertionError(why)


@pytest.fixture
def device() -> Iterator[Device]:
    lead = Lead(PLAN, fail)
    yield Device(setup=Setup(name="w1", plan=PLAN, max_models=1), lead=lead)
    if not lead.followers.is_ending:
        lead.end()


def test_two_ranks_train_as_one_and_another_worker_goes_on_with_the_run(device: Device) -> None:
    sharded, plain = Program(), Program(run=make_client_run(1))
    for program in (sharded, plain):
        program.create()
    first = sharded.train(range(3)), plain.train(range(3))
    register(device)
    assert Worker.objects.get(name="w1").device.endswith(", 2 ranks, sharded")
    take_turns(device)
    held = device.held[sharded.run.pk]
    unregister(device)
    assert held.run.autosave_path
    sharded.run.refresh_from_db()
    assert sharded.run.worker == ""
    second = sharded.train(range(3, 6)), plain.train(range(3, 6))
    take_turns(make_device("w2"))
    for ours, theirs in zip((*first[0], *second[0]), (*first[1], *second[1]), strict=True):
        assert read_loss(ours) == pytest.approx(read_loss(theirs), rel=1e-5)


def test_a_full_parameter_run_has_both_ranks_for_itself_and_goes_on_after_an_eviction(
    device: Device,
) -> None:
    sharded = make_full(0)
    first = sharded.train(range(2))
    take_turns(device)
    assert isinstance(device.held[sharded.run.pk].engine, LeadEngine)
    device.evict(sharded.run.pk)
    assert not device.engines
    second = sharded.train(range(2, 4))
    take_turns(device)
    plain = make_full(1)
    expected = plain.train(range(4))
    take_turns(make_device("w2"))
    for ours, theirs in zip((*first, *second), expected, strict=True):
        assert read_loss(ours) == pytest.approx(read_loss(theirs), rel=1e-4)


def test_a_budget_is_one_ranks_and_says_into_how_many_pieces_layers_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HONE_MEMORY_MB", "1000")
    alone, cut = read_budget("cpu"), read_budget("cpu", PLAN)
    assert (alone.room, alone.num_pieces) == (1000 << 20, 1)
    assert (cut.room, cut.num_pieces) == (500 << 20, 2)
    assert read_budget("cpu", Plan(size=2, sharing="replicas")).num_pieces == 1


def test_a_model_that_one_device_cannot_hold_is_offered_where_it_is_cut() -> None:
    shape = ModelShape.from_config(LARGE)
    whole, cut = (
        fit_model(shape, "cuda", 80 << 30, 4096, is_full=False, num_pieces=pieces)
        for pieces in (1, 4)
    )
    with pytest.raises(InvalidInput, match="base model"):
        whole.room.check_run(LoraSpec(rank=16))
    cut.room.check_run(LoraSpec(rank=16))


def test_the_plan_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_plan("cpu") is None
    monkeypatch.setenv("HONE_RANKS", "2")
    assert read_plan("cpu") == Plan(size=2, sharing="fsdp")
    monkeypatch.setenv("HONE_SHARD", "replicas")
    assert str(read_plan("cpu")) == "2 ranks, replicas"


@pytest.mark.parametrize(("name", "value"), [("HONE_RANKS", "0"), ("HONE_SHARD", "halves")])
def test_a_worker_that_was_told_nonsense_does_not_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=value):
        read_plan("cpu")
