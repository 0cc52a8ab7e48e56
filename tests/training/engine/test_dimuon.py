"""Dimuon: orthogonal directions, exact resumption, and no mixing with Adam."""

from pathlib import Path

import pytest
import torch

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.dimuon import DimuonState, orthogonalise, step_dimuon
from training.engine.optim import check_params
from training.errors import InvalidInput
from training.types import (
    AdamParams,
    DimuonParams,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
)

PARAMS = DimuonParams(learning_rate=0.02)


@pytest.fixture
def muon_engine(random_paths: dict[str, Path]) -> Engine:
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=4, seed=1), "dimuon")
    return engine


def train(engine: Engine, *seeds: int, run: str = "run") -> list[float]:
    losses = []
    for seed in seeds:
        request = ForwardBackward(data=make_data(8, 19, seed=seed))
        output = engine.forward_backward({run: request})[run]
        assert isinstance(output, ForwardBackwardOutput)
        losses.append(output.metrics["loss:sum"])
        engine.optim_step(run, PARAMS)
    return losses


def read_values(engine: Engine, run: str = "run") -> torch.Tensor:
    return engine.adapters.by_run[run].values.clone()


@pytest.mark.parametrize("shape", [(5, 4, 48), (3, 64, 4), (2, 6, 6), (1, 1, 30)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_directions_are_the_matrix_sign(shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = scale * torch.randn(shape, generator=generator)
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    torch.testing.assert_close(orthogonalise(matrices).double(), u @ v, atol=1e-3, rtol=0)


def test_a_direction_has_the_norm_of_the_root_of_its_rank() -> None:
    directions = orthogonalise(torch.randn(7, 4, 48, generator=torch.Generator().manual_seed(1)))
    norms = torch.linalg.matrix_norm(directions)
    torch.testing.assert_close(norms, torch.full((7,), 2.0), atol=1e-4, rtol=0)
    grams = directions @ directions.mT
    torch.testing.assert_close(grams, torch.eye(4).expand(7, 4, 4), atol=1e-4, rtol=0)


def test_a_mean_of_zeros_moves_nothing() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 8)).any()


def test_two_steps_by_hand() -> None:
    """A tall and a wide matrix in one buffer; the mean runs, and every matrix has its own step."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(24, generator=generator)
    expected, mean = values.clone(), torch.zeros(24)
    state = DimuonState.fresh(values)

    def cut(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": flat[:12].view(2, 6), "b": flat[12:].view(6, 2)}

    for _ in range(2):
        gradients = torch.randn(24, generator=generator)
        mean = 0.9 * mean + 0.1 * gradients
        for name, matrix in cut(mean).items():
            u, _, v = torch.linalg.svd(matrix, full_matrices=False)
            cut(expected)[name].sub_(0.02 * (u @ v))
        step_dimuon(cut(values), gradients, cut(state.mean), state, PARAMS)
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(state.mean, mean)
    assert state.num_steps == 2


def test_training_lowers_the_loss(muon_engine: Engine) -> None:
    losses = train(muon_engine, *[5] * 12)
    assert losses[-1] < 0.9 * losses[0]


def test_save_load_step_is_step(
    muon_engine: Engine, tmp_path: Path, random_paths: dict[str, Path]
) -> None:
    train(muon_engine, 0, 1)
    muon_engine.save_weights("run", tmp_path / "saved", optimizer=True)
    train(muon_engine, 2, 3)
    fresh = Engine.load(random_paths["llama"])
    fresh.load_weights("other", tmp_path / "saved", optimizer=True)
    train(fresh, 2, 3, run="other")
    assert torch.equal(read_values(fresh, "other"), read_values(muon_engine))
    assert fresh.optimizers["other"].num_steps == 4


def test_weights_alone_begin_with_the_optimizer_that_is_asked_for(
    muon_engine: Engine, tmp_path: Path
) -> None:
    train(muon_engine, 0)
    muon_engine.save_weights("run", tmp_path / "saved", optimizer=True)
    muon_engine.load_weights("run", tmp_path / "saved", optimizer=False)
    muon_engine.optim_step("run", AdamParams())
    muon_engine.load_weights("run", tmp_path / "saved", optimizer=False, kind="dimuon")
    assert not muon_engine.optimizers["run"].mean.any()
    muon_engine.optim_step("run", PARAMS)


def test_parameters_of_the_other_optimizer_are_refused_and_change_nothing(
    engine: Engine, muon_engine: Engine
) -> None:
    values = read_values(engine)
    with pytest.raises(InvalidInput, match=r"optimizer is adamw.*parameters are DimuonParams"):
        engine.optim_step("run", PARAMS)
    assert torch.equal(read_values(engine), values)
    with pytest.raises(InvalidInput, match=r"optimizer is dimuon.*parameters are AdamParams"):
        muon_engine.optim_step("run", AdamParams())


def test_clipping_and_gradients_that_are_not_finite(muon_engine: Engine) -> None:
    muon_engine.forward_backward({"run": ForwardBackward(data=make_data(8))})
    clipped = DimuonParams(learning_rate=0.02, grad_clip_norm=1e-3)
    norm = muon_engine.optim_step("run", clipped).metrics["grad_norm"]
    mean = muon_engine.optimizers["run"].mean
    assert norm > 1e-3
    assert float(torch.linalg.vector_norm(mean)) == pytest.approx(0.1 * 1e-3, rel=1e-2)
    values = read_values(muon_engine)
    muon_engine.adapters.by_run["run"].gradients.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="not finite: the step was refused"):
        muon_engine.optim_step("run", PARAMS)
    assert torch.equal(read_values(muon_engine), values)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (DimuonParams(learning_rate=-1.0), "learning_rate is -1.0"),
        (DimuonParams(learning_rate=float("inf")), "learning_rate is inf"),
        (DimuonParams(learning_rate=0.1, beta1=1.0), "beta1 is 1.0: it must be below 1"),
        (DimuonParams(learning_rate=0.1, grad_clip_norm=float("nan")), "grad_clip_norm is nan"),
    ],
)
def test_parameters_that_would_break_the_weights_are_refused(
    params: DimuonParams, text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        check_params(params)
    check_params(DimuonParams(learning_rate=0.1, grad_clip_norm=-1.0))
