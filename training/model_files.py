"""Files of a whole model: what lies where in them, and folders of the same layout. No torch.

A full-parameter run's weights have the base's own files: the same names, headers and stored types,
so that only bytes of tensors differ, place by place.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, Manifest

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
# What loaders read beside the weights: config, generation settings, tokenizer, templates.
SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")

ByteArray = NDArray[np.uint8]
NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}  # else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file: its bytes are from `start` to `stop`, counted from the file's begin."""

    name: str
    dtype: str  # as safetensors says it: F32, BF16
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One file: what stands before its tensors, and these in the order of their bytes."""

    file: str
    header: bytes
    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        return max([len(self.header), *(entry.stop for entry in self.entries)])


def read_layouts(folder: Path) -> list[Layout]:
    """Of the weights that loaders take: those of the index, or the one file."""
    return [read_layout(folder / name) for name in _name_files(folder)]


def _name_files(folder: Path) -> list[str]:
    try:
        if (folder / INDEX_FILE).is_file():
            index = json.loads((folder / INDEX_FILE).read_text())
            return sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{folder.name} is damaged: {INDEX_FILE} cannot be read") from error
    return [WEIGHTS_FILE]


def read_layout(path: Path) -> Layout:
    where = f"{path.parent.name} is damaged: {path.name}"
    try:
        with path.open("rb") as stream:
            size = stream.read(8)
            header = stream.read(int.from_bytes(size, "little"))
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        begin = len(size) + len(header)
        entries = [_read_entry(name, field, begin) for name, field in fields.items()]
    except FileNotFoundError as error:
        raise InvalidInput(f"{where} is missing") from error
    except (OSError, OverflowError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{where} cannot be read") from error
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    return Layout(file=path.name, header=size + header, entries=tuple(entries))


def _read_entry(name: str, field: Mapping[str, Any], begin: int) -> Entry:
    start, stop = field["data_offsets"]
    return Entry(
        name=name,
        dtype=field["dtype"],
        shape=tuple(field["shape"]),
        start=begin + start,
        stop=begin + stop,
    )


def lay_out_floats(file: str, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """A file of float32 tensors, in the format of safetensors whatever its name."""
    return lay_out(file, {name: ("F32", shape) for name, shape in shapes.items()})


def lay_out(
    file: str,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """Of a dtype and a shape each, one behind the other."""
    fields: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = NUMBER_BYTES.get(dtype, 1) * math.prod(shape)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    marked = {"__metadata__": dict(metadata)} if metadata else {}
    text = json.dumps({**marked, **fields}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors begin at a multiple of their width
    header = len(text).to_bytes(8, "little") + text
    entries = [_read_entry(name, field, len(header)) for name, field in fields.items()]
    return Layout(file=file, header=header, entries=tuple(entries))


def write_layout(folder: Path, layout: Layout, tensors: Iterable[ByteArray]) -> str:
    """A file of that layout with these bytes of its tensors; returns its sha256."""
    digest = hashlib.sha256(layout.header)
    with (folder / layout.file).open("wb") as stream:
        stream.write(layout.header)
        for _, data in zip(layout.entries, tensors, strict=True):
            stream.write(data.data)
            digest.update(data.data)
    (folder / layout.file).chmod(0o644)  # a server under another user reads them too
    return digest.hexdigest()


def read_bytes(stream: BinaryIO, entry: Entry) -> ByteArray:
    stream.seek(entry.start)
    return np.fromfile(stream, np.uint8, entry.stop - entry.start)


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_model(path: Path) -> str:
    """Tells base models apart in milliseconds: config, sizes, 64 places of each weights file."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for place in range(64):
                stream.seek(size * place // 64)
                digest.update(stream.read(1 << 16))
    return digest.hexdigest()


def digest_weights(files: Mapping[str, str]) -> str:
    """Of all weights, from the sha256 of each of their files."""
    lines = (f"{name} {files[name]}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def copy_sides(source: Path, target: Path) -> dict[str, str]:
    """Config, tokenizer and the like, as they are; returns their digests."""
    copied = {}
    for file in _find_sides(source):
        shutil.copyfile(file, target / file.name)
        (target / file.name).chmod(0o644)
        copied[file.name] = digest_file(file)
    return copied


def _find_sides(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        is_side = file.suffix in SIDE_SUFFIXES and file.name != MANIFEST_FILE
        if is_side and file.is_file() and not file.name.startswith("."):
            yield file


def check_files(folder: Path, manifest: Manifest) -> None:
    """Every file is there and as it was written, or an InvalidInput names the one that is not."""
    for name, digest in manifest.files.items():
        where = f"{folder.name} is damaged: {name}"
        try:
            found = digest_file(folder / name)
        except FileNotFoundError as error:
            raise InvalidInput(f"{where} is missing") from error
        except OSError as error:
            raise InvalidInput(f"{where} cannot be read") from error
        if found != digest:
            raise InvalidInput(f"{where} does not have the digest that {MANIFEST_FILE} says")
