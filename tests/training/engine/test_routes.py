"""Recorded routes: the experts chosen at sampling are those that a pass goes through."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.conftest import NUM_EXPERTS
from tests.training.engine.rows import make_data, make_datum
from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, IntArray, LoraSpec

Stir = Callable[[Engine, str], None]
SPEC = LoraSpec(rank=2, alpha=6.0, train_attn=False)
NAMES = {
    "qwen3_moe": ("mlp.experts", "gate_proj", "up_proj", "down_proj"),
    "mixtral": ("block_sparse_moe.experts", "w1", "w3", "w2"),
}


@pytest.fixture
def engine(mixture: Path, stir: Stir) -> Engine:
    engine = Engine.load(mixture)
    engine.create_adapter("run", SPEC)
    stir(engine, "run")
    return engine


def find_routers(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".mlp.gate")]


def perturb(model: PreTrainedModel) -> None:
    """Other choices than before, for many tokens."""
    generator = torch.Generator().manual_seed(5)
    for router in find_routers(model):
        weight = router.weight
        assert isinstance(weight, torch.Tensor)
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)


def run(engine: Engine, *data: Datum, forward_only: bool = False) -> ForwardBackwardOutput:
    request = ForwardBackward(data=data, with_routes=True, forward_only=forward_only)
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def read_routes(output: ForwardBackwardOutput) -> list[IntArray]:
    assert output.routes is not None
    return list(output.routes)


class Written(nn.Module):
    """A layer of experts written out, token by token, with a run's adapter and given routes."""

    def __init__(self, block: nn.Module, layer: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.block, self.layer, self.names = block, layer, names
        self.leaves: dict[str, torch.Tensor] = {}
        self.routes: IntArray
        self.is_normed = getattr(block.get_submodule("gate"), "norm_topk_prob", True)

    def find_weight(self, projection: str, expert: int) -> torch.Tensor:
        """The frozen weights plus scale * B A."""
        place, gate, up, _ = self.names
        experts = self.block.get_submodule("experts")
        both, down = experts.gate_up_proj, experts.down_proj
        assert isinstance(both, torch.Tensor)
        assert isinstance(down, torch.Tensor)
        width = down.shape[2]
        frozen = {gate: both[expert, :width], up: both[expert, width:]}.get(
            projection, down[expert]
        )
        prefix = f"base_model.model.model.layers.{self.layer}.{place}.{expert}.{projection}"
        a, b = (self.leaves[f"{prefix}.{side}.weight"] for side in ("lora_A", "lora_B"))
        return frozen + SPEC.alpha / SPEC.rank * (b @ a)

    def forward(self, hidden_1TH: torch.Tensor) -> torch.Tensor:
        router = self.block.get_submodule("gate").weight
        assert isinstance(router, torch.Tensor)
        outputs = []
        for token_H, chosen in zip(hidden_1TH[0], self.routes[:, self.layer].tolist(), strict=True):
            scores = (router @ token_H).softmax(0)
            weights = torch.stack([scores[expert] for expert in chosen])
            if self.is_normed:
                weights = weights / weights.sum()
            told = [self.ask(token_H, expert) for expert in chosen]
            outputs.append((weights[:, None] * torch.stack(told)).sum(0))
        return torch.stack(outputs)[None]

    def ask(self, token_H: torch.Tensor, expert: int) -> torch.Tensor:
        gate, up, down = (self.find_weight(name, expert) for name in self.names[1:])
        return down @ (nn.functional.silu(gate @ token_H) * (up @ token_H))


def write_out(
    engine: Engine, datum: Datum, routes: IntArray
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities and gradients of the weighted loss, from nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(engine.path, dtype=torch.float32)
    perturb(model)
    tensors = engine.adapters.by_run["run"].tensors
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    for layer, block in enumerate(model.model.layers):
        block.mlp = Written(block.mlp, layer, NAMES[engine.path.name])
        block.mlp.leaves, block.mlp.routes = leaves, routes
    logits_TV = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    logprobs_T = logits_TV.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (-logprobs_T * torch.from_numpy(datum.inputs["weights"])).sum().backward()
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return logprobs_T.detach(), gradients


def test_a_replayed_pass_goes_where_the_recorded_one_went(engine: Engine) -> None:
    datum = make_datum(30)
    (recorded,) = read_routes(run(engine, datum, forward_only=True))
    assert recorded.shape == (30, engine.model.config.num_hidden_layers, recorded.shape[2])
    perturb(engine.model)
    (other,) = read_routes(run(engine, datum, forward_only=True))
    assert (np.sort(other) != np.sort(recorded)).any()
    (replayed,) = read_routes(run(engine, replace(datum, routes=recorded)))
    np.testing.assert_array_equal(replayed, recorded)


def test_gradients_of_a_replayed_pass_are_those_written_out_by_hand(engine: Engine) -> None:
    datum = make_datum(20)
    (recorded,) = read_routes(run(engine, datum, forward_only=True))
    perturb(engine.model)
    output = run(engine, replace(datum, routes=recorded))
    logprobs_T, expected = write_out(engine, datum, recorded)
    np.testing.assert_allclose(output.logprobs[0], logprobs_T.numpy(), atol=1e-5)
    adapter = engine.adapters.by_run["run"]
    gradients = adapter.view(adapter.gradients)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)


def test_its_own_routes_change_nothing(engine: Engine) -> None:
    data = make_data(20, 30)
    plain = run(engine, *data)
    gradients = engine.adapters.by_run["run"].gradients.clone()
    engine.drop_gradients("run")
    routes = read_routes(plain)
    again = run(engine, *(replace(d, routes=r) for d, r in zip(data, routes, strict=True)))
    assert again.metrics == plain.metrics
    assert torch.equal(engine.adapters.by_run["run"].gradients, gradients)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_routes_may_be_small_numbers(engine: Engine, dtype: type[np.integer]) -> None:
    data = make_data(9, 12)
    routes = np.flip(np.sort(read_routes(run(engine, *data))[1]), axis=-1)
    small = replace(data[1], routes=routes.astype(dtype))
    np.testing.assert_array_equal(read_routes(run(engine, data[0], small))[1], routes)


def test_positions_without_a_route_choose_for_themselves(engine: Engine) -> None:
    datum = make_datum(12)
    (own,) = read_routes(run(engine, datum))
    routes = np.flip(np.sort(own), axis=-1).copy()
    routes[:7] = -1
    (followed,) = read_routes(run(engine, replace(datum, routes=routes)))
    np.testing.assert_array_equal(followed[:7], own[:7])
    np.testing.assert_array_equal(followed[7:], routes[7:])


def test_a_prefix_is_shared_only_with_those_that_go_the_same_way(engine: Engine) -> None:
    long = make_datum(50)
    short = Datum(
        tokens=long.tokens[:40], inputs={key: each[:40] for key, each in long.inputs.items()}
    )
    (own,) = read_routes(run(engine, long, forward_only=True))
    others = own.copy()
    others[20:] = (others[20:] + 1) % NUM_EXPERTS
    data = [replace(long, routes=own), replace(short, routes=others[:40]), short]
    data.append(replace(long, routes=others))
    engine.drop_gradients("run")
    alone = [run(engine, datum) for datum in data]
    gradients = engine.adapters.by_run["run"].gradients.clone()
    engine.drop_gradients("run")
    together = run(engine, *data)
    torch.testing.assert_close(
        engine.adapters.by_run["run"].gradients, gradients, atol=1e-5, rtol=1e-5
    )
    for index, (routes, logprobs) in enumerate(
        zip(read_routes(together), together.logprobs, strict=True)
    ):
        np.testing.assert_array_equal(routes, read_routes(alone[index])[0])
        np.testing.assert_allclose(logprobs, alone[index].logprobs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda routes: routes[:-1], r"datum 1: routes have the shape \(8, 3, \d\), expected are"),
        (lambda routes: routes[:, :1], r"the model's 3 layers with experts"),
        (lambda routes: routes.astype(np.float32), "datum 1: routes are float32: send integers"),
        (lambda routes: put(routes, NUM_EXPERTS), "datum 1: routes at position 4 name the experts"),
        (lambda routes: put(routes, -1), "different ones from 0 to 3, or -1 for all"),
        (lambda routes: put(routes, int(routes[4, 2, 0])), "in layer 2: send"),
    ],
)
def test_routes_that_cannot_be_followed_are_refused(
    engine: Engine, spoil: Callable[[IntArray], IntArray], message: str
) -> None:
    data = make_data(6, 9)
    (_, routes) = read_routes(run(engine, *data))
    bad = [data[0], replace(data[1], routes=spoil(routes))]
    answer = engine.forward_backward({"run": ForwardBackward(data=bad)})["run"]
    assert isinstance(answer, InvalidInput)
    with pytest.raises(InvalidInput, match=message):
        raise answer


def put(routes: IntArray, expert: int) -> IntArray:
    routes[4, 2, 1] = expert
    return routes


@pytest.mark.parametrize("with_routes", [True, False])
def test_a_dense_model_has_no_routes(tiny_path: Path, with_routes: bool) -> None:
    engine = Engine.load(tiny_path)
    engine.create_adapter("run", LoraSpec(rank=2))
    datum = make_datum(5)
    if not with_routes:
        datum = replace(datum, routes=np.zeros((5, 1, 1), np.int64))
    request = ForwardBackward(data=[datum], with_routes=with_routes)
    answer = engine.forward_backward({"run": request})["run"]
    assert isinstance(answer, InvalidInput)
    assert "this model is dense" in str(answer)


def test_routes_are_followed_where_activations_are_computed_again(
    mixture: Path, engine: Engine, stir: Stir
) -> None:
    datum = make_datum(20)
    (routes,) = read_routes(run(engine, datum, forward_only=True))
    saver = Engine.load(mixture, recompute=True)
    saver.create_adapter("run", SPEC)
    stir(saver, "run")
    gradients = []
    for each in (engine, saver):
        perturb(each.model)
        (followed,) = read_routes(run(each, replace(datum, routes=routes)))
        np.testing.assert_array_equal(followed, routes)
        gradients.append(each.adapters.by_run["run"].gradients)
    assert torch.equal(*gradients)


def test_work_is_counted_for_the_experts_that_a_token_meets(engine: Engine) -> None:
    model, num_chosen = engine.model, engine.model.config.num_experts_per_tok
    experts = sum(each.numel() for name, each in model.named_parameters() if ".experts." in name)
    idle = experts * (NUM_EXPERTS - num_chosen) // NUM_EXPERTS
    run(engine, make_datum(10))
    assert engine.flops == 4 * 10 * (model.num_parameters() - idle)
