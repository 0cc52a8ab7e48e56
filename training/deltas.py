"""Deltas: what differs between the stored bits of two states of a model's weights, compressed.

Each tensor in the order of its file, in blocks of BLOCK_BYTES; each block is eight bytes of length,
then one frame of zstd; a length of 0 is a block that did not change. In the frame are the bits'
exclusive or, all first bytes of its numbers, then all second ones: of numbers that are close, the
high bytes are nearly all zero.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import zstandard

from training.errors import InvalidInput
from training.manifest import DELTA_FILE, MANIFEST_FILE, Manifest, read_manifest
from training.model_files import (
    NUMBER_BYTES,
    ByteArray,
    Entry,
    Layout,
    check_files,
    copy_sides,
    digest_weights,
    read_bytes,
    read_layouts,
    write_layout,
)

MAX_DELTAS = 8  # in a row; then a base is written, so that a restore reads few files
LEVEL = 3
LENGTH_BYTES = 8
BLOCK_BYTES = 32 << 20  # a multiple of every number's; blocks are compressed side by side
T = TypeVar("T")
S = TypeVar("S")


def encode(before: ByteArray, after: ByteArray, width: int) -> bytes:
    """The frame of one block with numbers of `width` bytes; empty where nothing changed."""
    changed = before ^ after
    if not changed.any():
        return b""
    planes = np.ascontiguousarray(changed.reshape(-1, width).T)
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(planes.data)


def decode(before: ByteArray, frame: bytes, width: int) -> ByteArray:
    """The bytes after, from those before. InvalidInput where the frame is not of this block."""
    if not frame:
        return before
    try:
        size = zstandard.frame_content_size(frame)
        if size != len(before):
            raise InvalidInput(f"a block has {len(before)} bytes, and its difference {size}")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
    except zstandard.ZstdError as error:
        raise InvalidInput("a difference cannot be decompressed") from error
    after = before.copy()
    numbers = after.reshape(-1, width)
    for place, plane in enumerate(planes.reshape(width, -1)):  # a third of a transposed copy's time
        numbers[:, place] ^= plane
    return after


def find_width(entry: Entry) -> int:
    return NUMBER_BYTES.get(entry.dtype, 1)


def find_chain(folder: Path) -> list[tuple[Path, Manifest]]:
    """The base, then each delta up to this folder, which may be a base itself."""
    chain: list[tuple[Path, Manifest]] = []
    while True:
        if chain and not folder.is_dir():
            raise InvalidInput(
                f"{chain[0][0].name} holds only what differs from {folder.name}, which is not there"
                " any more"
            )
        manifest = read_manifest(folder)
        if chain and manifest.digest != chain[0][1].previous_digest:
            raise InvalidInput(
                f"{chain[0][0].name} is the difference to other weights than {folder.name} has"
            )
        chain.insert(0, (folder, manifest))
        if manifest.type != "delta":
            return chain
        folder = _step_back(folder, manifest, len(chain))


def _step_back(folder: Path, manifest: Manifest, length: int) -> Path:
    name = str(manifest.previous)
    is_beside = Path(name).name == name and name not in ("", "..", folder.name)
    if not is_beside or length > MAX_DELTAS:
        raise InvalidInput(f"{folder.name} is damaged: {MANIFEST_FILE} names no folder beside it")
    return folder.with_name(name)


class Chain:
    """The weights of a folder, tensor by tensor in the order of the files, whatever its type."""

    def __init__(self, folder: Path) -> None:
        self.folders = find_chain(folder)
        for place, manifest in self.folders:
            check_files(place, manifest)
        self.base, first = self.folders[0]
        if first.type != "base":
            raise InvalidInput(f"{self.base.name} holds an adapter, not the weights of a model")
        self.layouts = read_layouts(self.base)

    def __iter__(self) -> Iterator[tuple[Layout, Iterator[ByteArray]]]:
        """For each file its layout and its tensors' bytes, which are to be used up before the
        next."""
        with ExitStack() as stack:
            deltas = [
                stack.enter_context((folder / DELTA_FILE).open("rb"))
                for folder, _ in self.folders[1:]
            ]
            for layout in self.layouts:
                with (self.base / layout.file).open("rb") as stream:
                    yield layout, _read_tensors(stream, layout, deltas)


def _read_tensors(
    stream: BinaryIO, layout: Layout, deltas: Sequence[BinaryIO]
) -> Iterator[ByteArray]:
    for entry in layout.entries:
        data = read_bytes(stream, entry)
        for delta in deltas:
            data = read_difference(delta, data, find_width(entry))
        yield data


def cut_blocks(data: ByteArray) -> list[ByteArray]:
    return [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]


def write_difference(stream: BinaryIO, before: ByteArray, after: ByteArray, width: int) -> None:
    """Of one tensor."""
    blocks = zip(cut_blocks(before), cut_blocks(after), strict=True)
    for frame in spread(lambda pair: encode(pair[0], pair[1], width), list(blocks)):
        stream.write(len(frame).to_bytes(LENGTH_BYTES, "little"))
        stream.write(frame)


def read_difference(stream: BinaryIO, before: ByteArray, width: int) -> ByteArray:
    """The tensor after, from that before."""
    blocks = [(block, read_frame(stream)) for block in cut_blocks(before)]
    after = list(spread(lambda pair: decode(pair[0], pair[1], width), blocks))
    return np.concatenate(after) if after else before


def read_frame(stream: BinaryIO) -> bytes:
    length = stream.read(LENGTH_BYTES)
    frame = stream.read(int.from_bytes(length, "little"))
    if len(length) < LENGTH_BYTES:
        raise InvalidInput(f"{DELTA_FILE} ends before its last tensor")
    return frame


def spread(work: Callable[[T], S], pieces: Sequence[T]) -> Iterator[S]:
    """In threads, in order. Most tensors are one piece, and are worth no thread."""
    if len(pieces) < 2:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(work, pieces)


def restore_folder(folder: Path, target: Path) -> None:
    """Write what a checkpoint holds as a whole model that loaders read, into the empty `target`.

    Compared with the digest that was written when it was saved; there is no manifest.
    """
    chain = Chain(folder)
    copy_sides(chain.base, target)
    files = {layout.file: write_layout(target, layout, tensors) for layout, tensors in chain}
    if digest_weights(files) != chain.folders[-1][1].digest:
        raise InvalidInput(f"{folder.name} is damaged: its weights do not have their digest")


def restore_next(folder: Path, before: Path, target: Path) -> None:
    """As `restore_folder` does, by one delta alone: `before` is where the weights that it is the
    difference to lie restored. InvalidInput where they are not what they were."""
    chain = find_chain(folder)
    manifest = chain[-1][1]
    check_files(folder, manifest)
    base, first = chain[0]
    sides = copy_sides(base, target)
    if changed := [name for name, digest in sides.items() if first.files.get(name) != digest]:
        raise InvalidInput(f"{base.name} is damaged: {changed[0]} is not as it was written")
    with (folder / DELTA_FILE).open("rb") as delta:
        files = {}
        for layout in read_layouts(before):
            with (before / layout.file).open("rb") as stream:
                tensors = _read_tensors(stream, layout, [delta])
                files[layout.file] = write_layout(target, layout, tensors)
    if digest_weights(files) != manifest.digest:
        raise InvalidInput(f"{folder.name} cannot be restored from {before.name} alone")
