"""The self-test of isolation: it passes where nothing leaks, and finds what does."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.training.engine.rows import make_data
from training.engine.adapters import Adapters
from training.engine.core import Engine
from training.engine.cycle import Pack
from training.engine.isolation import QUANTITIES, TENANTS, Difference, Report, measure_isolation
from training.engine.lora import Slice
from training.types import AdamParams, ForwardBackward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_passes_on_every_family_of_models(model_path: Path, dtype: torch.dtype) -> None:
    report = measure_isolation(Engine.load(model_path, dtype=dtype))
    assert report.is_passed
    assert [each.quantity for each in report.differences] == list(QUANTITIES)
    assert all(each.beside > 0 for each in report.differences)
    assert report.dtype == str(dtype).removeprefix("torch.")


def test_all_eight_are_in_one_pass_and_each_is_alone_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run_pack = Engine.run_pack

    def note_and_run(engine: Engine, pack: Pack, tallies: object) -> None:
        sizes.append(len(pack.runs))
        run_pack(engine, pack, tallies)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "run_pack", note_and_run)
    report = measure_isolation(engine)
    assert sizes == [8, *[1] * 8, 8]
    assert len(TENANTS) == 8
    assert report.num_tokens == 400


def test_runs_that_train_are_not_touched(engine: Engine) -> None:
    engine.forward_backward({"run": ForwardBackward(data=make_data(9, 12))})
    engine.optim_step("run", AdamParams(learning_rate=1e-2))
    engine.forward_backward({"run": ForwardBackward(data=make_data(7))})
    adapter = engine.adapters.by_run["run"]
    before = adapter.values.clone(), adapter.gradients.clone()
    moments = engine.optimizers["run"].mean.clone()
    measure_isolation(engine)
    assert engine.runs == ("run",)
    assert torch.equal(adapter.values, before[0])
    assert torch.equal(adapter.gradients, before[1])
    assert torch.equal(engine.optimizers["run"].mean, moments)
    assert adapter.has_gradients


def test_it_finds_a_token_that_goes_through_a_neighbours_adapter(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Adapters.serve

    def leak(adapters: Adapters, slices: Sequence[Slice]) -> object:
        shifted = [Slice(each.run, max(0, each.start - 1), each.stop) for each in slices]
        return serve(adapters, shifted if len(slices) > 1 else slices)

    monkeypatch.setattr(Adapters, "serve", leak)
    report = measure_isolation(engine)
    assert not report.is_passed
    assert not any(each.is_within for each in report.differences)


def test_nothing_is_left_behind_where_it_breaks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(engine: Engine, pack: Pack, tallies: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "run_pack", break_down)
    with pytest.raises(RuntimeError):
        measure_isolation(engine)
    assert engine.runs == ("run",)


def make_difference(largest: float, beside: float = 1.0) -> Difference:
    return Difference(quantity="loss", largest=largest, beside=beside, tolerance=1e-5)


def test_what_is_no_number_is_not_within() -> None:
    assert make_difference(1e-6).is_within
    assert make_difference(0.0, beside=0.0).is_within
    assert not make_difference(2e-5).is_within
    assert not make_difference(1.0, beside=0.0).is_within
    assert not make_difference(float("nan")).is_within
    bad = make_difference(float("inf"))
    assert not Report(dtype="float32", num_tokens=1, differences=[bad]).is_passed
