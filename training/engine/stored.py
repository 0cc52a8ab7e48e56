"""Where a model's parameters lie in its base's files, and under which names and types."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from training.engine.experts import NAMES as EXPERTS
from training.engine.experts import LoraExperts
from training.errors import InvalidInput
from training.model_files import ByteArray, Entry, Layout, read_bytes, read_layouts

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

Tensors = Mapping[str, torch.Tensor]


class Target(Protocol):
    """What a whole tensor is copied into: a tensor, or whoever keeps only its part of it."""

    @property
    def shape(self) -> torch.Size: ...

    def copy_(self, whole: torch.Tensor, /) -> Any: ...

    def __getitem__(self, place: tuple[int, slice], /) -> Any:
        """Of experts: what some rows of one are copied into."""


Targets = Mapping[str, Target]


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor of a file is in the model: a parameter or, of experts, some rows of one."""

    parameter: str
    expert: int | None = None
    rows: tuple[int, int] = (0, 0)

    def find(self, tensors: Tensors) -> torch.Tensor:
        whole = tensors[self.parameter]
        return whole if self.expert is None else whole[self.expert, slice(*self.rows)]

    def fill(self, targets: Targets, whole: torch.Tensor) -> None:
        target = targets[self.parameter]
        part = target if self.expert is None else target[self.expert, slice(*self.rows)]
        part.copy_(whole)


def find_places(model: PreTrainedModel) -> dict[str, Place]:
    """By every name that files may have for them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {
        name: Place(first[id(parameter)])
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraExperts):
            for block, projections in EXPERTS.values():
                prefix = name.removesuffix("mlp.experts") + block
                places |= dict(_cut_experts(name, module, prefix, projections))
                router = f"{name.removesuffix('experts')}gate.weight"
                places[f"{prefix.removesuffix('experts')}gate.weight"] = Place(router)
    return places


def _cut_experts(
    name: str, module: LoraExperts, prefix: str, projections: tuple[str, str, str]
) -> Iterator[tuple[str, Place]]:
    """In files each expert has three matrices; here gate and up of all of them are one tensor."""
    num_experts, hidden, width = module.down_proj.shape
    both, down = f"{name}.gate_up_proj", f"{name}.down_proj"
    cuts = ((both, (0, width)), (both, (width, 2 * width)), (down, (0, hidden)))
    for expert in range(num_experts):
        for projection, (parameter, rows) in zip(projections, cuts, strict=True):
            yield f"{prefix}.{expert}.{projection}.weight", Place(parameter, expert, rows)


class ModelFiles:
    """How a model's parameters lie in the files that it was read from."""

    def __init__(self, model: PreTrainedModel, path: Path) -> None:
        self.path = path
        self.layouts = read_layouts(path)
        self.places = find_places(model)
        self._check({name: each.detach() for name, each in model.named_parameters()})

    def _check(self, tensors: Tensors) -> None:
        """A weight that the files do not have, or have in another shape, could not be saved."""
        sizes: dict[Place, int] = {}
        for place, entry in self.list_parameters():
            if entry.dtype not in DTYPES:
                raise InvalidInput(
                    f"{self.path.name} stores {entry.name} as {entry.dtype}: all weights can be "
                    f"trained where they are {', '.join(DTYPES)}"
                )
            if entry.shape == tuple(place.find(tensors).shape):
                sizes[place] = math.prod(entry.shape)
        found = dict.fromkeys(tensors, 0)
        for place, size in sizes.items():
            found[place.parameter] += size
        if left := [name for name, size in found.items() if size != tensors[name].numel()]:
            raise InvalidInput(
                f"{self.path.name} keeps {len(left)} of its weights, such as {left[0]}, in other "
                "shapes or under other names than the model has: it can be trained by adapters only"
            )

    @property
    def are_exact(self) -> bool:
        """Whether what is stored is the master itself."""
        return all(entry.dtype == "F32" for _, entry in self.list_parameters())

    def list_parameters(self) -> Iterator[tuple[Place, Entry]]:
        for layout in self.layouts:
            for entry in layout.entries:
                if entry.name in self.places:
                    yield self.places[entry.name], entry

    def fill(self, tensors: Targets, layout: Layout, data: Iterable[ByteArray]) -> None:
        """Copy a file's tensors into those of the parameters. Of tied ones that a file has twice,
        the later is as good: loaders tie what the config says."""
        for entry, piece in zip(layout.entries, data, strict=True):
            if entry.name in self.places:
                stored = torch.from_numpy(piece).view(DTYPES[entry.dtype])
                self.places[entry.name].fill(tensors, stored.view(entry.shape))

    def read(self, tensors: Targets) -> None:
        """The weights that a run begins with."""
        for layout in self.layouts:
            with (self.path / layout.file).open("rb") as stream:
                data = (read_bytes(stream, entry) for entry in layout.entries)
                self.fill(tensors, layout, data)

    def encode(self, tensors: Tensors, layout: Layout) -> Iterator[ByteArray]:
        """A file's tensors, as they are stored; those that are no parameters are the base's."""
        with (self.path / layout.file).open("rb") as stream:
            for entry in layout.entries:
                if entry.name in self.places:
                    tensor = self.places[entry.name].find(tensors)
                    yield read_bits(tensor.detach().to(DTYPES[entry.dtype]))
                else:
                    yield read_bytes(stream, entry)


def read_bits(tensor: torch.Tensor) -> ByteArray:
    bits: ByteArray = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return bits
