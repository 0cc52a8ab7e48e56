"""LoRA by segment: every linear layer holds each run's A and B and applies them to that run's rows.

Shapes: N rows (tokens, flattened), I inputs and O outputs of a layer, R rank.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from training.engine.products import multiply, pull_back
from training.errors import InvalidInput
from training.types import MAX_RANK, LoraSpec

Part = Literal["attn", "mlp", "unembed"]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `start` to `stop` of what enters a layer, flattened to [N, I], belong to `run`."""

    run: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One run's A and B in one layer, and the sums of their gradients. Views of flat buffers."""

    a: torch.Tensor  # [R, I]
    b: torch.Tensor  # [O, R]
    a_grad: torch.Tensor
    b_grad: torch.Tensor
    scale: float


Active = tuple[tuple[int, int, Pair], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Where gradients of a head's own weights are summed, while a run trains all of a model."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Route:
    """Which rows belong to which run in the pass that runs now; shared by all layers of a model."""

    def __init__(self) -> None:
        self.slices: Sequence[Slice] = ()


class LoraLinear(nn.Module):
    """A linear layer with any number of runs' adapters beside it, or trained itself by one run."""

    def __init__(self, linear: nn.Linear, route: Route) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.route = route
        self.pairs: dict[str, Pair] = {}
        self.sums: Sums | None = None

    def find_active(self, slices: Sequence[Slice]) -> Active:
        return tuple((s.start, s.stop, self.pairs[s.run]) for s in slices if s.run in self.pairs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        active = self.find_active(self.route.slices)
        rows_NI = inputs.reshape(-1, inputs.shape[-1])
        if self.weight.requires_grad and torch.is_grad_enabled():
            out_NO = train_rows(rows_NI, self.weight, self.bias)
        elif torch.is_grad_enabled():
            out_NO = record_rows(rows_NI, self.weight, self.bias, active)
        else:
            out_NO, _ = project_rows(rows_NI, self.weight, self.bias, active)
        return out_NO.view(*inputs.shape[:-1], -1)


def record_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, active: Active
) -> torch.Tensor:
    """`project_rows`, to be differentiated."""
    leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
    return _SegmentedLinear.apply(rows_NI, weight_OI, bias_O, active, *leaves)  # type: ignore[no-any-return,no-untyped-call]


def project_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, active: Active
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The layer's output, and every slice's rows times A, which the backward needs again."""
    out_NO = multiply(rows_NI, weight_OI, bias_O)
    return out_NO, add_low_rank(out_NO, rows_NI, active)


def add_low_rank(out_NO: torch.Tensor, rows_NI: torch.Tensor, active: Active) -> list[torch.Tensor]:
    """In place: each slice's part of the output. Returns its rows times A."""
    lows = []
    for start, stop, pair in active:
        low_NR = rows_NI[start:stop] @ pair.a.to(rows_NI.dtype).T
        out_NO[start:stop].addmm_(low_NR, pair.b.to(low_NR.dtype).T, alpha=pair.scale)
        lows.append(low_NR)
    return lows


def add_gradients(
    pair: Pair, rows_NI: torch.Tensor, low_NR: torch.Tensor, grad_NO: torch.Tensor
) -> torch.Tensor:
    """Sum one slice's gradients of A and B into the run's buffers; returns that of `low_NR`."""
    grad_low_NR = grad_NO @ pair.b.to(grad_NO.dtype)
    sum_product(pair.b_grad, grad_NO.T, low_NR, pair.scale)
    sum_product(pair.a_grad, grad_low_NR.T, rows_NI, pair.scale)
    return grad_low_NR


def sum_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """Buffers are float32 whatever the model computes in."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


class _SegmentedLinear(torch.autograd.Function):
    """x W' + scale (x A') B' for each slice; A and B are arguments only to be seen by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        active: Active,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_NO, lows = project_rows(rows_NI, weight_OI, bias_O, active)
        ctx.active, ctx.num_leaves = active, len(leaves)
        ctx.save_for_backward(rows_NI if active else None, weight_OI, *lows)
        return out_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI, *lows = ctx.saved_tensors
        grad_NI = pull_back(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        for (start, stop, pair), low_NR in zip(ctx.active, lows, strict=True):
            slice_NO = grad_NO[start:stop]
            grad_low_NR = add_gradients(pair, rows_NI[start:stop], low_NR, slice_NO)
            if grad_NI is not None:
                a_RI = pair.a.to(grad_NI.dtype)
                grad_NI[start:stop].addmm_(grad_low_NR, a_RI, alpha=pair.scale)
        return (grad_NI, None, None, None, *[None] * ctx.num_leaves)


def train_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """The layer's output, to be differentiated by its own weights too."""
    return _TrainedLinear.apply(rows_NI, weight_OI, bias_O)  # type: ignore[no-any-return,no-untyped-call]


class _TrainedLinear(torch.autograd.Function):
    """x W' + b of a full-parameter run."""

    @staticmethod
    def forward(
        ctx: Any, rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(rows_NI, weight_OI)
        return multiply(rows_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI = ctx.saved_tensors
        grad_NI = pull_back(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        grad_O = grad_NO.sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad_NI, multiply(grad_NO.T, rows_NI.T), grad_O


class Adapter:
    """One run's trainable weights: flat float32 buffers, seen layer by layer as pairs."""

    def __init__(
        self, spec: LoraSpec, layers: Mapping[str, LoraLinear], device: torch.device
    ) -> None:
        self.spec = spec
        shapes = {
            key: shape
            for name, layer in layers.items()
            for key, shape in _name_shapes(name, layer, spec.rank)
        }
        total = sum(rows * columns for rows, columns in shapes.values())
        self.values = torch.zeros(total, device=device)
        self.gradients = torch.zeros(total, device=device)
        self.has_gradients = False
        self.shapes = shapes
        self.tensors = self.view(self.values)
        gradients = self.view(self.gradients)
        self.pairs = {name: self._pair(name, gradients) for name in layers}
        self._initialise(spec.seed)

    @property
    def num_parameters(self) -> int:
        return self.values.numel()

    def view(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """A buffer as flat as the weights, by PEFT's tensor names."""
        pieces = torch.split_with_sizes(
            flat, [rows * columns for rows, columns in self.shapes.values()]
        )
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def _pair(self, name: str, gradients: Mapping[str, torch.Tensor]) -> Pair:
        a, b = name_tensors(name)
        return Pair(
            a=self.tensors[a].requires_grad_(),
            b=self.tensors[b].requires_grad_(),
            a_grad=gradients[a],
            b_grad=gradients[b],
            scale=self.spec.alpha / self.spec.rank,
        )

    def _initialise(self, seed: int) -> None:
        """A uniform as in nn.Linear, B zero: a new adapter changes nothing. On CPU, so that the
        same seed gives the same adapter on every device."""
        generator = torch.Generator().manual_seed(seed)
        for pair in self.pairs.values():
            fresh_RI = torch.empty(pair.a.shape)
            nn.init.kaiming_uniform_(fresh_RI, a=math.sqrt(5), generator=generator)
            pair.a.detach().copy_(fresh_RI)

    def drop_gradients(self) -> None:
        self.gradients.zero_()
        self.has_gradients = False


def name_tensors(layer: str) -> tuple[str, str]:
    """The names PEFT gives the A and the B of a layer in adapter_model.safetensors."""
    return (f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight")


def _name_shapes(name: str, layer: LoraLinear, rank: int) -> list[tuple[str, tuple[int, int]]]:
    outputs, inputs = layer.weight.shape
    a, b = name_tensors(name)
    return [(a, (rank, inputs)), (b, (outputs, rank))]


class Adapters:
    """All runs' adapters on one model. Making it replaces the model's linear layers, once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.route = Route()
        self.layers = replace_linears(model, self.route)
        self.head = next(layer for part, layer in self.layers.values() if part == "unembed")
        self.device = self.head.weight.device
        self.by_run: dict[str, Adapter] = {}

    def select_layers(self, spec: LoraSpec) -> dict[str, LoraLinear]:
        wanted = {
            "attn": spec.train_attn,
            "mlp": spec.train_mlp,
            "unembed": spec.train_unembed,
        }
        return {name: layer for name, (part, layer) in self.layers.items() if wanted[part]}

    def add(self, run: str, spec: LoraSpec) -> Adapter:
        """A fresh adapter; one that the run had before is replaced."""
        check_spec(spec)
        self.drop(run)
        layers = self.select_layers(spec)
        adapter = Adapter(spec, layers, self.device)
        for name, layer in layers.items():
            layer.pairs[run] = adapter.pairs[name]
        self.by_run[run] = adapter
        return adapter

    def drop(self, run: str) -> None:
        self.by_run.pop(run, None)
        for _, layer in self.layers.values():
            layer.pairs.pop(run, None)

    @contextmanager
    def serve(self, slices: Sequence[Slice]) -> Iterator[None]:
        """Inside, row ranges of every layer's flattened input go through their run's adapter.

        Rows that no slice names are the base model's. The head sees other rows than the layers
        where only some positions are projected: open a second `serve` around its call.
        """
        before, self.route.slices = self.route.slices, slices
        try:
            yield
        finally:
            self.route.slices = before


def check_spec(spec: LoraSpec) -> None:
    if not 1 <= spec.rank <= MAX_RANK:
        raise InvalidInput(f"rank is {spec.rank}: choose one from 1 to {MAX_RANK}")
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise InvalidInput(f"alpha is {spec.alpha}: choose a positive number")
    if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
        raise InvalidInput(
            "nothing to train: set at least one of train_attn, train_mlp and train_unembed"
        )


def replace_linears(model: PreTrainedModel, route: Route) -> dict[str, tuple[Part, LoraLinear]]:
    """Put a LoraLinear in the place of every linear layer that a run may train."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = {
        name: (part, LoraLinear(module, route))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (part := _find_part(name, module is head))
    }
    if {part for part, _ in found.values()} != {"attn", "mlp", "unembed"}:
        raise InvalidInput(
            f"{type(model).__name__} has no linear layers under self_attn, mlp and a head: "
            "only dense Llama-like and Qwen-like models can be trained"
        )
    for name, (_, layer) in found.items():
        model.set_submodule(name, layer)
    return found


def _find_part(name: str, is_head: bool) -> Part | None:
    if is_head:
        return "unembed"
    if ".self_attn." in name:
        return "attn"
    return "mlp" if ".mlp." in name else None
