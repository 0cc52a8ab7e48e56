"""Linear layers cut over ranks as transformers' plan of a family says: tensor parallelism.

Of two layers in a row the first is cut by its outputs and the second by its inputs, so that what
lies between them never leaves its rank (Megatron-LM: Shoeybi et al. 2019, arXiv 1909.08053). Every
rank sees all rows, and has whole adapters: each layer uses its part of a run's A or B, and
gradients are sums over the ranks. Embedding and head are whole on each of them.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from training.engine.adapters import Adapter, Adapters
from training.engine.lora import Active, Block, LoraLinear, Pair, Slice
from training.engine.ranks import Ranks
from training.errors import InvalidInput


class _Copied(torch.autograd.Function):
    """The same on every rank; what comes back is summed over them."""

    @staticmethod
    def forward(_: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Summed(torch.autograd.Function):
    """Over the ranks; what comes back is the same for each of them."""

    @staticmethod
    def forward(_: Any, outputs: torch.Tensor) -> torch.Tensor:
        total = outputs.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class CutLinear(LoraLinear):
    """A rank's part of a linear layer, with that part of every run's adapter."""

    dim: int  # of the weight that is cut

    def __init__(self, whole: LoraLinear, ranks: Ranks) -> None:
        super().__init__(whole, whole.route)  # type: ignore[arg-type] # it has what a linear has
        self.whole_shape = whole.weight.shape
        size = self.whole_shape[self.dim] // ranks.plan.size
        self.part = slice(ranks.rank * size, (ranks.rank + 1) * size)
        weight_OI = whole.weight.detach().narrow(self.dim, self.part.start, size)
        self.weight = nn.Parameter(weight_OI.clone(), requires_grad=False)

    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        a, b = super().name_blocks(name, rank)
        outputs, inputs = self.whole_shape
        return replace(a, shape=(rank, inputs)), replace(b, shape=(outputs, rank))

    def find_active(self, slices: Sequence[Slice]) -> Active:
        active = super().find_active(slices)
        return tuple((start, stop, self.cut(pair)) for start, stop, pair in active)

    @abstractmethod
    def cut(self, pair: Pair) -> Pair:
        """This rank's part of a run's adapter."""


class ColumnLinear(CutLinear):
    """All inputs, a part of the outputs."""

    dim = 0

    def __init__(self, whole: LoraLinear, ranks: Ranks) -> None:
        super().__init__(whole, ranks)
        if whole.bias is not None:
            self.bias = nn.Parameter(whole.bias.detach()[self.part].clone(), requires_grad=False)

    def cut(self, pair: Pair) -> Pair:
        return replace(pair, b=pair.b[self.part], b_grad=pair.b_grad[self.part])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        copied: torch.Tensor = _Copied.apply(inputs)  # type: ignore[no-untyped-call]
        return super().forward(copied)


class RowLinear(CutLinear):
    """A part of the inputs, and so of each output's sum."""

    dim = 1

    def __init__(self, whole: LoraLinear, ranks: Ranks) -> None:
        super().__init__(whole, ranks)
        self.whole_bias, self.bias = whole.bias, None  # type: ignore[assignment]

    def cut(self, pair: Pair) -> Pair:
        return replace(pair, a=pair.a[:, self.part], a_grad=pair.a_grad[:, self.part])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = _Summed.apply(super().forward(inputs))  # type: ignore[no-untyped-call]
        return outputs if self.whole_bias is None else outputs + self.whole_bias


STYLES: dict[str, type[CutLinear]] = {"colwise": ColumnLinear, "rowwise": RowLinear}


def cut_model(model: PreTrainedModel, adapters: Adapters, ranks: Ranks) -> None:
    """InvalidInput where its family has no plan, or one with more than these two kinds of cuts."""
    check_heads(model, ranks.plan.size)
    plan = getattr(model.config, "base_model_tp_plan", None) or {}
    for name, (part, layer) in list(adapters.layers.items()):
        if part not in ("attn", "mlp"):
            continue
        key = re.sub(r"\.\d+\.", ".*.", name.removeprefix(f"{model.base_model_prefix}."))
        kind = STYLES.get(plan.get(key, ""))
        if kind is None or not isinstance(layer, LoraLinear):
            raise InvalidInput(
                f"{type(model).__name__} has no plan to cut {name} that is known here: hold it by"
                " fsdp or replicas"
            )
        if layer.weight.shape[kind.dim] % ranks.plan.size:
            raise InvalidInput(f"{name} cannot be cut into {ranks.plan.size} equal parts")
        cut = kind(layer, ranks)
        model.set_submodule(name, cut)
        adapters.layers[name] = (part, cut)


def check_heads(model: PreTrainedModel, size: int) -> None:
    """A head of attention is on one rank."""
    heads = model.config.num_attention_heads
    for count in (heads, getattr(model.config, "num_key_value_heads", None) or heads):
        if count % size:
            raise InvalidInput(
                f"{type(model).__name__} has {count} heads: they cannot be cut into {size} equal"
                " parts"
            )


def keep_own_gradients(adapters: Adapters, adapter: Adapter, *, is_lead: bool) -> None:
    """Before they are summed over the ranks: those of whole layers are all there on each."""
    for name, pair in adapter.pairs.items():
        if not is_lead and not isinstance(adapters.layers[name][1], CutLinear):
            pair.a_grad.zero_()
            pair.b_grad.zero_()
    if not is_lead and adapter.projection is not None:
        adapter.projection.gradient.zero_()
