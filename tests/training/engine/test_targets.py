"""Several targets for one position: every number is that of plain autograd, at one projection."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.engine.reference import load_peft, peft_parameters, read_gradients
from tests.training.engine.rows import make_data, make_datum
from training.engine import logprobs as projections
from training.engine.core import Engine
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

Stir = Callable[[Engine, str], None]
SPECS = {
    "all layers": LoraSpec(rank=4, seed=3),
    "head too": LoraSpec(rank=3, alpha=6.0, train_unembed=True),
}


def widen(datum: Datum, num_targets: int, seed: int = 0) -> Datum:
    """Random targets and signed weights; a third of the cells are padding: token 0, weight 0."""
    random = np.random.default_rng(seed)
    shape = (len(datum.tokens), num_targets)
    on = random.random(shape) < 0.67
    on[: shape[0] // 3] = False  # a prompt, that nothing is asked of
    return replace(
        datum,
        inputs={
            "target_tokens": on * random.integers(0, 97, shape),
            "weights": (on * random.normal(size=shape)).astype(np.float32),
        },
    )


def run_request(
    engine: Engine, request: ForwardBackward, run: str = "run"
) -> ForwardBackwardOutput:
    output = engine.forward_backward({run: request})[run]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def take_gradients(engine: Engine, run: str = "run") -> torch.Tensor:
    adapter = engine.adapters.by_run[run]
    gradients = adapter.gradients.clone()
    adapter.drop_gradients()
    return gradients


def ragged_data() -> list[Datum]:
    narrow, *wide = make_data(12, 9, 21, 30)
    columns = (1, 5, 2)
    return [narrow, *(widen(each, k, k) for each, k in zip(wide, columns, strict=True))]


def sum_plainly(
    model: torch.nn.Module, data: Sequence[Datum]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The whole vocabulary of one sequence after the other: nothing of ours."""
    total, told = torch.zeros(()), []
    for datum in data:
        logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        columns = targets.reshape(len(targets), -1)
        chosen = logits.log_softmax(-1).gather(1, columns).reshape(targets.shape)
        total = total - (chosen * torch.from_numpy(datum.inputs["weights"])).sum()
        told.append(chosen.detach())
    return total, told


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_loss_logprobs_and_gradients_of_ragged_targets_are_those_of_peft(
    name: str, spec: LoraSpec, random_paths: dict[str, Path], stir: Stir, tmp_path: Path
) -> None:
    engine = Engine.load(random_paths[name])
    engine.create_adapter("run", spec)
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    data = ragged_data()
    model = load_peft(random_paths[name], tmp_path / "saved")
    loss, told = sum_plainly(model, data)
    loss.backward()
    output = run_request(engine, ForwardBackward(data=data))
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    for datum, ours, theirs in zip(data, output.logprobs, told, strict=True):
        assert ours.shape == datum.inputs["target_tokens"].shape
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)
    expected = peft_parameters(model)
    for key, gradient in read_gradients(engine, "run").items():
        torch.testing.assert_close(gradient, expected[key].grad, atol=1e-5, rtol=1e-4)


def test_k_targets_are_k_requests_of_one_target(engine: Engine, stir: Stir) -> None:
    stir(engine, "run")
    datum = widen(make_datum(24), 4)
    whole = run_request(engine, ForwardBackward(data=[datum]))
    gradients = take_gradients(engine)
    columns = [
        replace(datum, inputs={name: values[:, k] for name, values in datum.inputs.items()})
        for k in range(4)
    ]
    apart = [run_request(engine, ForwardBackward(data=[column])) for column in columns]
    torch.testing.assert_close(take_gradients(engine), gradients, atol=1e-5, rtol=1e-5)
    losses = [output.metrics["loss:sum"] for output in apart]
    assert whole.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-5)
    for k, output in enumerate(apart):
        np.testing.assert_allclose(whole.logprobs[0][:, k], output.logprobs[0], atol=1e-5)


def test_a_position_is_projected_once_whatever_the_number_of_its_targets(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, project = [], projections._project

    def count(hidden_CH: torch.Tensor, head: object, pair: object) -> torch.Tensor:
        rows.append(len(hidden_CH))
        return project(hidden_CH, head, pair)  # type: ignore[arg-type]

    monkeypatch.setattr(projections, "_project", count)
    run_request(engine, ForwardBackward(data=[widen(make_datum(30), 40)]))
    assert sum(rows) == 30


def test_small_chunks_change_no_number(
    random_paths: dict[str, Path], stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=3, train_unembed=True))
    stir(engine, "run")
    request = ForwardBackward(data=[widen(make_datum(30), 17)])
    whole = run_request(engine, request)
    gradients = take_gradients(engine)
    monkeypatch.setattr(projections, "CHUNK_BYTES", 4 * 97 * 7)  # seven positions, one target
    small = run_request(engine, request)
    np.testing.assert_allclose(small.logprobs[0], whole.logprobs[0], atol=1e-5)
    torch.testing.assert_close(take_gradients(engine), gradients, atol=1e-5, rtol=1e-5)


def test_runs_with_different_numbers_of_targets_share_a_call(engine: Engine, stir: Stir) -> None:
    engine.create_adapter("other", LoraSpec(rank=2, train_unembed=True))
    requests = {
        "run": ForwardBackward(data=ragged_data()),
        "other": ForwardBackward(data=[widen(make_datum(14), 5, 8)]),
    }
    gradients, outputs = {}, {}
    for run, request in requests.items():
        stir(engine, run)
        outputs[run] = run_request(engine, request, run)
        gradients[run] = take_gradients(engine, run)
    together = engine.forward_backward(requests)
    for run, output in together.items():
        assert isinstance(output, ForwardBackwardOutput)
        assert output.metrics == pytest.approx(outputs[run].metrics, rel=1e-5)
        for left, right in zip(output.logprobs, outputs[run].logprobs, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
        torch.testing.assert_close(take_gradients(engine, run), gradients[run])


def test_weighted_logprobs_leave_out_positions_of_which_nothing_is_asked(engine: Engine) -> None:
    datum = widen(make_datum(24), 3)
    full = run_request(engine, ForwardBackward(data=[datum]))
    gradients = take_gradients(engine)
    sparse = run_request(engine, ForwardBackward(data=[datum], config={"logprobs": "weighted"}))
    assert torch.equal(take_gradients(engine), gradients)
    asked = datum.inputs["weights"] != 0
    assert not sparse.logprobs[0][~asked.any(axis=1)].any()
    np.testing.assert_array_equal(sparse.logprobs[0][asked], full.logprobs[0][asked])
    assert sparse.metrics == full.metrics


def test_counts_are_of_targets_and_missing_weights_are_ones(engine: Engine) -> None:
    datum = widen(make_datum(24), 3)
    metrics = run_request(engine, ForwardBackward(data=[datum])).metrics
    assert metrics["num_scored:sum"] == np.count_nonzero(datum.inputs["weights"])
    assert metrics["weights:sum"] == pytest.approx(datum.inputs["weights"].sum(), abs=1e-5)
    plain = replace(datum, inputs={"target_tokens": datum.inputs["target_tokens"]})
    output = run_request(engine, ForwardBackward(data=[plain]))
    assert output.metrics["weights:sum"] == output.metrics["num_scored:sum"] == 24 * 3
    assert output.metrics["loss:sum"] == pytest.approx(-float(output.logprobs[0].sum()), rel=1e-5)


def test_a_clients_own_loss_over_several_targets_has_the_gradient_of_autograd(
    engine: Engine, stir: Stir, tmp_path: Path, random_paths: dict[str, Path]
) -> None:
    """As the SDK does it: look at the log-probabilities, then send minus the slopes as weights."""
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    datum = widen(make_datum(20), 3)
    silent = replace(datum, inputs={**datum.inputs, "weights": np.zeros((20, 3), np.float32)})
    told = run_request(engine, ForwardBackward(data=[silent], forward_only=True)).logprobs[0]
    leaf = torch.from_numpy(told.copy()).requires_grad_()
    (leaf.exp().sum(dim=1) ** 2).sum().backward()
    assert leaf.grad is not None
    surrogate = replace(datum, inputs={**datum.inputs, "weights": -leaf.grad.numpy()})
    run_request(engine, ForwardBackward(data=[surrogate]))
    model = load_peft(random_paths["llama"], tmp_path / "saved")
    logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    (logits.softmax(-1).gather(1, targets).sum(dim=1) ** 2).sum().backward()
    expected = peft_parameters(model)
    for key, gradient in read_gradients(engine, "run").items():
        torch.testing.assert_close(gradient, expected[key].grad, atol=1e-6, rtol=1e-4)
