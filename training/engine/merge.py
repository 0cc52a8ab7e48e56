"""An adapter folded into its base model's files, or a checkpoint of all weights as a whole model.

Tensor by tensor, in float32 and then rounded to what is stored: no model is loaded, and no more
than one tensor is held. A tied head that the adapter makes another matrix than the input embedding
becomes one of its own.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from training.deltas import Chain, restore_folder
from training.engine.checkpoint import ADAPTER_FILE, write_json
from training.engine.embedding import name_tensors as name_embedding
from training.engine.lora import name_tensors
from training.engine.peft_folder import read_config
from training.engine.stored import DTYPES, read_bits
from training.errors import InvalidInput
from training.manifest import read_manifest
from training.model_files import (
    INDEX_FILE,
    ByteArray,
    Entry,
    Layout,
    copy_sides,
    digest_weights,
    lay_out,
    read_bytes,
    read_layouts,
    write_layout,
)

Precision = Literal["source", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("source", "bf16")
Files = Iterable[tuple[Layout, Iterator[ByteArray]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The names of a model's input embedding and head, and whether they are one matrix."""

    embedding: str
    head: str
    are_tied: bool

    @classmethod
    def read(cls, folder: Path) -> "Ends":
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
        return cls(
            embedding=names[id(model.get_input_embeddings())],
            head=names[id(model.get_output_embeddings())],
            are_tied=bool(config.tie_word_embeddings),
        )


class AdapterWeights:
    """A PEFT folder's matrices, by the names of the weights that they change. Each is used once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.config = read_config(folder)
            self.left = load_file(folder / ADAPTER_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise InvalidInput(f"{folder.name} cannot be read as an adapter: {error}") from None

    def has(self, weight: str) -> bool:
        return self._find(weight) is not None

    def _find(self, weight: str) -> tuple[str, str] | None:
        layer = weight.removesuffix(".weight")
        pairs = (name_tensors(layer), name_embedding(layer))
        return next((pair for pair in pairs if pair[0] in self.left), None)

    def take(self, weight: str) -> torch.Tensor | None:
        """What is added to that weight, in float32."""
        names = self._find(weight)
        if names is None:
            return None
        if names[1] not in self.left:
            raise InvalidInput(f"{self.folder.name} has {names[0]} without its other half")
        a, b = (self.left.pop(name).float() for name in names)
        divisor = math.sqrt(len(a)) if self.config.get("use_rslora") else len(a)
        change: torch.Tensor = (b @ a) * (self.config["lora_alpha"] / divisor)
        is_embedding = names == name_embedding(weight.removesuffix(".weight"))
        return change.T if is_embedding else change


@dataclass(slots=True, kw_only=True)
class Merge:
    """What becomes of a model's tensors on their way."""

    precision: Precision
    ends: Ends
    adapter: AdapterWeights | None = None
    unties: bool = False
    head: torch.Tensor | None = None  # of its own, where the files hold none

    def part_ends(self, folder: Path, layouts: Sequence[Layout]) -> None:
        """Where the adapter changes one of two ends that are the same matrix, they part. Files may
        hold that matrix twice already: then each copy is changed by itself."""
        ends, adapter = self.ends, self.adapter
        if adapter is None or not ends.are_tied:
            return
        self.unties = adapter.has(ends.embedding) or adapter.has(ends.head)
        places = {entry.name: (layout, entry) for layout in layouts for entry in layout.entries}
        if self.unties and ends.head not in places:
            layout, entry = places[ends.embedding]
            with (folder / layout.file).open("rb") as stream:
                base = widen(read_bytes(stream, entry), entry)
            change = adapter.take(ends.head)
            self.head = base if change is None else base + change

    def lay_out(self, layout: Layout) -> Layout:
        """The file as it will be: its types may be others, and the new head comes last."""
        fields = {each.name: (self._choose(each.dtype), each.shape) for each in layout.entries}
        embedding = fields.get(self.ends.embedding)
        if self.head is not None and embedding is not None:
            fields[self.ends.head] = embedding
        return lay_out(layout.file, fields, {"format": "pt"})

    def _choose(self, dtype: str) -> str:
        return "BF16" if self.precision == "bf16" and dtype in DTYPES else dtype

    def convert(
        self, layout: Layout, tensors: Iterator[ByteArray], target: Layout
    ) -> Iterator[ByteArray]:
        for entry, data in zip(layout.entries, tensors, strict=True):
            yield self._convert(entry, data)
        if len(target.entries) > len(layout.entries):
            assert self.head is not None
            yield encode(self.head, target.entries[-1].dtype)

    def _convert(self, entry: Entry, data: ByteArray) -> ByteArray:
        dtype = self._choose(entry.dtype)
        change = self.adapter.take(entry.name) if self.adapter else None
        if change is None and dtype == entry.dtype:
            return data
        weight = widen(data, entry)
        return encode(weight if change is None else add(weight, change, entry.name), dtype)


def add(weight: torch.Tensor, change: torch.Tensor, name: str) -> torch.Tensor:
    if weight.shape != change.shape:
        raise InvalidInput(
            f"{name} has the shape {tuple(weight.shape)}, the adapter changes one of "
            f"{tuple(change.shape)}: is it of another base model?"
        )
    return weight + change


def widen(data: ByteArray, entry: Entry) -> torch.Tensor:
    if entry.dtype not in DTYPES:
        raise InvalidInput(
            f"{entry.name} is stored as {entry.dtype}: what can be merged or converted is "
            f"{', '.join(DTYPES)}"
        )
    return torch.from_numpy(data).view(DTYPES[entry.dtype]).view(entry.shape).float()


def encode(weight: torch.Tensor, dtype: str) -> ByteArray:
    return read_bits(weight.to(DTYPES[dtype]))


def merge_adapter(base: Path, adapter: Path, target: Path, precision: Precision) -> str:
    """Into the empty folder `target`; returns the digest of the weights there."""
    weights = AdapterWeights(adapter)
    merge = Merge(precision=precision, ends=Ends.read(base), adapter=weights)
    digest = write_merged(base, read_files(base), merge, target)
    if weights.left:
        raise InvalidInput(
            f"{adapter.name}: the base model's files have no place for {min(weights.left)}"
        )
    return digest


def restore_model(folder: Path, target: Path, precision: Precision) -> str:
    """The same of a checkpoint of all weights, a base or a delta."""
    if precision == "source":
        restore_folder(folder, target)
        return read_manifest(folder).digest
    chain = Chain(folder)
    merge = Merge(precision=precision, ends=Ends.read(chain.base))
    return write_merged(chain.base, chain, merge, target)


def read_files(folder: Path) -> Files:
    for layout in read_layouts(folder):
        with (folder / layout.file).open("rb") as stream:
            yield layout, (read_bytes(stream, entry) for entry in layout.entries)


def write_merged(source: Path, files: Files, merge: Merge, target: Path) -> str:
    copy_sides(source, target)
    layouts = read_layouts(source)
    merge.part_ends(source, layouts)
    digests, written = {}, []
    for layout, tensors in files:
        fresh = merge.lay_out(layout)
        digests[fresh.file] = write_layout(target, fresh, merge.convert(layout, tensors, fresh))
        written.append(fresh)
    describe(target, merge, written)
    return digest_weights(digests)


def describe(target: Path, merge: Merge, layouts: Iterable[Layout]) -> None:
    """Where what loaders read beside the weights would not fit them any more."""
    changes: dict[str, Any] = {}
    if merge.unties:
        changes["tie_word_embeddings"] = False
    if merge.precision == "bf16":
        changes["dtype"] = "bfloat16"
    change_json(target / "config.json", changes)
    if (target / INDEX_FILE).is_file():
        files = {entry.name: layout.file for layout in layouts for entry in layout.entries}
        total = sum(each.stop - each.start for layout in layouts for each in layout.entries)
        index = json.loads((target / INDEX_FILE).read_text())
        metadata = {**index.get("metadata", {}), "total_size": total}
        change_json(target / INDEX_FILE, {"weight_map": files, "metadata": metadata})


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    if changes:
        fields = json.loads(path.read_text())
        fields.pop("torch_dtype", None) if "dtype" in changes else None
        write_json(path, {**fields, **changes})
