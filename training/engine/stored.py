"""Where a model's parameters lie in its base's files, and under which names and types."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from training.errors import InvalidInput
from training.model_files import ByteArray, Entry, Layout, read_bytes, read_layouts

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

Tensors = Mapping[str, torch.Tensor]


class Target(Protocol):
    """What a whole tensor is copied into: a tensor, or whoever keeps only its part of it."""

    @property
    def shape(self) -> torch.Size: ...

    def copy_(self, whole: torch.Tensor, /) -> Any: ...


Targets = Mapping[str, Target]


def name_owners(model: PreTrainedModel) -> dict[str, str]:
    """Every name of every parameter, and the one that its weights have here."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


class ModelFiles:
    """Where in its base's files each parameter of a model lies, under which names."""

    def __init__(self, model: PreTrainedModel, path: Path) -> None:
        self.path = path
        self.layouts = read_layouts(path)
        self.owners = name_owners(model)
        self.shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
        self._check()

    def _check(self) -> None:
        """A weight that the files do not have, or have in another shape, could not be saved."""
        entries = [entry for layout in self.layouts for entry in layout.entries]
        known = [entry for entry in entries if entry.name in self.owners]
        left = self.shapes.keys() - {self.owners[entry.name] for entry in known}
        for entry in known:
            if entry.dtype not in DTYPES:
                raise InvalidInput(
                    f"{self.path.name} stores {entry.name} as {entry.dtype}: all weights can be "
                    f"trained where they are {', '.join(DTYPES)}"
                )
            if entry.shape != self.shapes[self.owners[entry.name]]:
                left.add(entry.name)
        if left:
            raise InvalidInput(
                f"{self.path.name} keeps {len(left)} of its weights, such as {min(left)}, in other "
                "shapes or under other names than the model has: it can be trained by adapters only"
            )

    @property
    def are_exact(self) -> bool:
        """Whether what is stored is the master itself."""
        return all(entry.dtype == "F32" for _, entry in self.list_parameters())

    def list_parameters(self) -> Iterator[tuple[str, Entry]]:
        for layout in self.layouts:
            for entry in layout.entries:
                if entry.name in self.owners:
                    yield self.owners[entry.name], entry

    def fill(self, tensors: Targets, layout: Layout, data: Iterable[ByteArray]) -> None:
        """Copy a file's tensors into those of the parameters. Of tied ones that a file has twice,
        the later is as good: loaders tie what the config says."""
        for entry, piece in zip(layout.entries, data, strict=True):
            if entry.name in self.owners:
                stored = torch.from_numpy(piece).view(DTYPES[entry.dtype])
                tensors[self.owners[entry.name]].copy_(stored.view(entry.shape))

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
                if entry.name in self.owners:
                    tensor = tensors[self.owners[entry.name]]
                    yield read_bits(tensor.detach().to(DTYPES[entry.dtype]))
                else:
                    yield read_bytes(stream, entry)


def read_bits(tensor: torch.Tensor) -> ByteArray:
    bits: ByteArray = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return bits
