"""A full-parameter run: all weights of an engine's model are the run's own.

The master is float32 and flat. A model that computes in float32 sees it directly; one in bfloat16
has working weights, which each step writes again from the master by plain rounding to the nearest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from training.engine.lora import LoraLinear, Sums
from training.engine.projection import HEAD, Projection
from training.engine.steps import Counts
from training.engine.stored import DTYPES, ModelFiles, Target
from training.errors import InvalidInput
from training.types import LoraSpec


class FullWeights:
    """Flat float32 buffers, seen by the names of a model's parameters. Knows no model."""

    def __init__(
        self, spec: LoraSpec, shapes: Mapping[str, torch.Size], device: torch.device
    ) -> None:
        self.spec = spec
        self.shapes = dict(shapes)
        total = sum(shape.numel() for shape in self.shapes.values())
        self.values = torch.zeros(total, device=device)
        self.gradients = torch.zeros(total, device=device)
        self.has_gradients = False
        self.counts = Counts()
        self.tensors = self.view(self.values)

    @property
    def num_parameters(self) -> int:
        return self.values.numel()

    def view(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """A buffer as flat as the weights, by the names of the parameters."""
        pieces = torch.split_with_sizes(flat, [shape.numel() for shape in self.shapes.values()])
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def drop_gradients(self) -> None:
        self.gradients.zero_()
        self.has_gradients = False
        self.counts = Counts()


def measure_parameters(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Tied weights once, under their first name."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


class FullRun:
    """The one run of an engine that trains all weights of its model."""

    def __init__(
        self, name: str, spec: LoraSpec, model: PreTrainedModel, head: LoraLinear, path: Path
    ) -> None:
        self.name = name
        self.files = ModelFiles(model, path)
        shapes, device = measure_parameters(model), head.weight.device
        if spec.projection_head_dim:
            shapes[HEAD] = torch.Size((spec.projection_head_dim, head.weight.shape[1]))
        release_parameters(model)
        self.weights = FullWeights(spec, shapes, device)
        self.training = Training(model, head, self.weights)

    @property
    def projection(self) -> Projection | None:
        return Projection.find(self.weights.tensors, self.weights.view(self.weights.gradients))

    def list_targets(self, flat: torch.Tensor) -> Mapping[str, Target]:
        """Where whole tensors go, in a buffer as flat as the weights."""
        return self.weights.view(flat)

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Inside, the model computes with what its files will hold."""
        if self.files.are_exact or self.training.rounded:
            yield
            return
        values = self.weights.values
        kept = values.clone()
        try:
            for place, entry in self.files.list_parameters():
                tensor = place.find(self.weights.tensors)
                tensor.copy_(tensor.to(DTYPES[entry.dtype]))
            yield
        finally:
            values.copy_(kept)


class Training:
    """Makes a model compute with a run's weights, and sums its gradients into theirs."""

    def __init__(self, model: PreTrainedModel, head: LoraLinear, weights: FullWeights) -> None:
        self.rounded: list[tuple[torch.Tensor, torch.Tensor]] = []
        gradients = weights.view(weights.gradients)
        for name, parameter in model.named_parameters():
            self._adopt(parameter, weights.tensors[name], gradients[name])
        owners = {id(parameter): name for name, parameter in model.named_parameters()}
        head.sums = Sums(
            weight=gradients[owners[id(head.weight)]],
            bias=None if head.bias is None else gradients[owners[id(head.bias)]],
        )

    def _adopt(self, parameter: nn.Parameter, value: torch.Tensor, total: torch.Tensor) -> None:
        if parameter.dtype == value.dtype:
            parameter.data = value
        else:
            self.rounded.append((parameter, value))
        parameter.requires_grad_()
        hook = partial(sum_gradient, total)
        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """After the master has changed."""
        with torch.no_grad():
            for parameter, value in self.rounded:
                parameter.copy_(value)


def sum_gradient(total: torch.Tensor, parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    total.add_(parameter.grad)
    parameter.grad = None


def release_parameters(model: PreTrainedModel) -> None:
    """Before a master takes their place in float32: the same weights are not held twice."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.new_empty(0)


def check_free(others: Sequence[str], *, is_spent: bool) -> None:
    """Whether a run can have an engine's model; `others` are runs that could not stay beside it."""
    if is_spent:
        raise InvalidInput(
            "all weights of this engine's model were trained by a run that has left: load the base"
            " model again"
        )
    if others:
        raise InvalidInput(
            "a full-parameter run has the whole model for itself: this engine holds "
            f"{' and '.join(others)} already"
        )
