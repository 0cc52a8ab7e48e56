"""A full-parameter run whose model is cut over ranks: master, moments and gradients are cut alike.

Every rank has its rows of each parameter, in float32 and flat. The model's own pieces are working
weights, which each step writes again from the master, whatever the model computes in.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from training.engine.full import FullRun, FullWeights, Training
from training.engine.lora import LoraLinear, Sums
from training.engine.optim import measure_norm
from training.engine.ranks import Ranks
from training.engine.stored import DTYPES, ModelFiles
from training.types import LoraSpec


class Piece:
    """A rank's rows of a parameter, beside the whole of it."""

    def __init__(self, rows: torch.Tensor, shape: torch.Size, ranks: Ranks) -> None:
        self.rows, self.shape, self.ranks = rows, shape, ranks

    def copy_(self, whole: torch.Tensor, /) -> None:
        self.rows.copy_(self.cut(whole))

    def __getitem__(self, place: tuple[int, slice], /) -> torch.Tensor:
        """Of experts: some rows of one. They are nobody's where another rank has that expert."""
        expert, rows = place
        own = expert - self.ranks.rank * -(-self.shape[0] // self.ranks.plan.size)
        nobodys = torch.empty(self.shape[1:], device=self.rows.device)
        return (self.rows[own] if 0 <= own < len(self.rows) else nobodys)[rows]

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """As FSDP2 does it: the last ranks may have none."""
        pieces = whole.chunk(self.ranks.plan.size)
        return pieces[self.ranks.rank] if self.ranks.rank < len(pieces) else whole[:0]


class ShardedRun(FullRun):
    """All ranks make it, and what is done with it is done by all of them."""

    def __init__(
        self,
        name: str,
        spec: LoraSpec,
        model: PreTrainedModel,
        head: LoraLinear,
        path: Path,
        ranks: Ranks,
    ) -> None:
        self.name, self.model, self.head, self.ranks = name, model, head, ranks
        self.files = ModelFiles(model, path)
        self.whole_shapes = {key: each.shape for key, each in model.named_parameters()}
        shapes = {key: piece.shape for key, piece in self._list_pieces()}
        self.weights = FullWeights(spec, shapes, torch.device(ranks.device))
        self.training = ShardedTraining(model, self.weights)

    def _list_pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, cast(DTensor, parameter).to_local()

    def list_targets(self, flat: torch.Tensor) -> Mapping[str, Piece]:
        return {
            name: Piece(rows, self.whole_shapes[name], self.ranks)
            for name, rows in self.weights.view(flat).items()
        }

    def gather(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """The whole of one parameter, or of what belongs to it."""
        shape = self.whole_shapes[name]
        whole: torch.Tensor = DTensor.from_local(
            self.weights.view(flat)[name],
            self.ranks.mesh,
            [Shard(0)],
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        ).full_tensor()
        return whole

    def round_as_stored(self) -> None:
        """The model computes with what its files will hold, until it is refreshed."""
        tensors = self.weights.tensors
        stored = {place.parameter: entry.dtype for place, entry in self.files.list_parameters()}
        with torch.no_grad():
            for name, piece in self._list_pieces():
                piece.copy_(tensors[name].to(DTYPES[stored[name]]))

    def open_sums(self) -> torch.Tensor:
        """Before passes with gradients: those of the head are summed beside the model's graph. On
        as many rows as the ranks have together.
        """
        num_rows, width = self.head.weight.shape
        size = self.ranks.plan.size
        sums_VH = torch.zeros((-(-num_rows // size) * size, width), device=self.ranks.device)
        bias = None if self.head.bias is None else torch.zeros(num_rows, device=self.ranks.device)
        self.head.sums = Sums(weight=sums_VH[:num_rows], bias=bias)
        return sums_VH

    def close_sums(self, sums_VH: torch.Tensor) -> None:
        """After them: every rank has its rows of all ranks' sums."""
        sums, self.head.sums = self.head.sums, None
        assert sums is not None
        names = {id(each): name for name, each in self.model.named_parameters()}
        totals = self.weights.view(self.weights.gradients)
        own_VH = sums_VH.new_empty((len(sums_VH) // self.ranks.plan.size, sums_VH.shape[1]))
        dist.reduce_scatter_single(own_VH, sums_VH)
        total_VH = totals[names[id(self.head.weight)]]
        total_VH.add_(own_VH[: len(total_VH)])
        if sums.bias is not None:
            self.ranks.add_up(sums.bias)
            piece = self.list_targets(self.weights.gradients)[names[id(self.head.bias)]]
            piece.rows.add_(piece.cut(sums.bias))

    def take_gradients(self) -> None:
        """After a backward, which has summed them over the ranks already."""
        totals = self.weights.view(self.weights.gradients)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                totals[name].add_(cast(DTensor, parameter.grad).to_local())
                parameter.grad = None

    def measure_norm(self, gradients: torch.Tensor) -> torch.Tensor:
        """Of all ranks' rows."""
        square = measure_norm(gradients).square()
        self.ranks.add_up(square)
        norm: torch.Tensor = square.sqrt()
        return norm


class ShardedTraining(Training):
    """FSDP2 sums the gradients; the head's are not seen by it."""

    def __init__(self, model: PreTrainedModel, weights: FullWeights) -> None:
        self.rounded = []
        for name, parameter in model.named_parameters():
            piece = cast(DTensor, parameter).to_local()
            self.rounded.append((piece.detach(), weights.tensors[name]))
            parameter.requires_grad_()
