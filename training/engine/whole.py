"""Checkpoints of full-parameter runs: whole models, differences between them, master and moments.

Weights lie as the base's own files have them, in its stored types, so other loaders read them and
a difference is one of bytes. Tensors are written one at a time: no copy of all weights is made.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from training.deltas import MAX_DELTAS, Chain, find_width, write_difference
from training.engine.checkpoint import drafting, write_json
from training.engine.projection import HEAD
from training.engine.stored import ModelFiles, Targets, Tensors, read_bits
from training.errors import InvalidInput
from training.manifest import (
    DELTA_FILE,
    MANIFEST_FILE,
    MASTER_FILE,
    MOMENTS_FILE,
    Manifest,
)
from training.model_files import (
    Layout,
    copy_sides,
    digest_file,
    digest_weights,
    lay_out_floats,
    read_bytes,
    read_layout,
    write_layout,
)
from training.types import CheckpointType, LoraSpec, Optimizer, Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a folder is written from."""

    tensors: Tensors
    moments: Tensors | None
    spec: LoraSpec
    step: int
    kind: Optimizer
    base_digest: str
    probe: Probe


def write_base(folder: Path, files: ModelFiles, state: State) -> Manifest:
    """The folder appears complete, by a rename, or not at all; one that was there is replaced."""
    with drafting(folder) as draft:
        digests = copy_sides(files.path, draft)
        written = write_weights(draft, files, state.tensors)
        digests |= written
        if state.moments is not None:
            if not files.are_exact or HEAD in state.tensors:
                digests[MASTER_FILE] = write_floats(draft, MASTER_FILE, state.tensors)
            digests[MOMENTS_FILE] = write_floats(draft, MOMENTS_FILE, state.moments)
        digest = digest_weights(written)
        manifest = make_manifest(state, "base", digest=digest, files=digests)
        write_json(draft / MANIFEST_FILE, asdict(manifest))
    return manifest


def write_weights(draft: Path, files: ModelFiles, tensors: Tensors) -> dict[str, str]:
    """As they are stored; returns the digest of each file."""
    return {
        layout.file: write_layout(draft, layout, files.encode(tensors, layout))
        for layout in files.layouts
    }


def write_model(draft: Path, files: ModelFiles, tensors: Tensors) -> str:
    """What loaders of whole models read; returns the digest of the weights."""
    copy_sides(files.path, draft)
    return digest_weights(write_weights(draft, files, tensors))


def write_floats(draft: Path, name: str, tensors: Tensors) -> str:
    layout = lay_out_floats(name, {key: tuple(each.shape) for key, each in tensors.items()})
    return write_layout(draft, layout, (read_bits(tensors[e.name]) for e in layout.entries))


def write_delta(folder: Path, previous: Path, files: ModelFiles, state: State) -> Manifest:
    """What differs from the weights of the folder `previous` beside it."""
    if previous.parent != folder.parent:
        raise InvalidInput(f"{previous.name} does not lie beside {folder.name}")
    chain = Chain(previous)
    if len(chain.folders) > MAX_DELTAS:
        raise InvalidInput(
            f"{previous.name} is the last of {MAX_DELTAS} differences in a row: save a base"
        )
    with drafting(folder) as draft:
        digests = _write_differences(draft / DELTA_FILE, chain, files, state.tensors)
        total = sum(layout.num_bytes for layout in files.layouts)
        manifest = make_manifest(
            state,
            "delta",
            digest=digest_weights(digests),
            files={DELTA_FILE: digest_file(draft / DELTA_FILE)},
            previous=chain.folders[-1],
            ratio=(draft / DELTA_FILE).stat().st_size / total,
        )
        write_json(draft / MANIFEST_FILE, asdict(manifest))
    return manifest


def _write_differences(
    target: Path, chain: Chain, files: ModelFiles, tensors: Tensors
) -> dict[str, str]:
    """Returns the digests that the files will have when they are restored."""
    check_layouts(chain.base, chain.layouts, files)
    digests = {}
    with target.open("wb") as stream:
        for layout, before in chain:
            digest = hashlib.sha256(layout.header)
            after = files.encode(tensors, layout)
            for entry, old, new in zip(layout.entries, before, after, strict=True):
                write_difference(stream, old, new, find_width(entry))
                digest.update(new.data)
            digests[layout.file] = digest.hexdigest()
    target.chmod(0o644)
    return digests


def check_layouts(folder: Path, layouts: list[Layout], files: ModelFiles) -> None:
    if layouts != files.layouts:
        raise InvalidInput(f"{folder.name} holds other layers than this model has")


def make_manifest(
    state: State,
    kind: CheckpointType,
    *,
    digest: str,
    files: Mapping[str, str],
    previous: tuple[Path, Manifest] | None = None,
    ratio: float | None = None,
) -> Manifest:
    return Manifest(
        digest=digest,
        optimizer_digest=files.get(MOMENTS_FILE),
        base_digest=state.base_digest,
        spec=state.spec,
        step=state.step,
        optimizer=state.kind,
        probe=state.probe,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        type=kind,
        files=files,
        previous=previous[0].name if previous else "",
        previous_digest=previous[1].digest if previous else "",
        ratio=ratio,
    )


class Source:
    """A folder to load, whose every file agrees with its manifest."""

    def __init__(self, folder: Path, *, base_digest: str, optimizer: bool) -> None:
        self.folder = folder
        self.chain = Chain(folder)
        self.manifest = self.chain.folders[-1][1]
        if self.manifest.base_digest != base_digest:
            raise InvalidInput(f"{folder.name} was trained on another base model than this one")
        if optimizer and not self.manifest.has_optimizer:
            raise InvalidInput(
                f"{folder.name} holds no optimizer state: load it without, or take a training "
                "checkpoint"
            )

    def fill(self, files: ModelFiles, tensors: Targets, moments: Targets | None) -> None:
        """Copy what it holds into a run's weights and, where they are given, moments."""
        check_layouts(self.chain.base, self.chain.layouts, files)
        if MASTER_FILE in self.manifest.files:
            read_floats(self.folder / MASTER_FILE, tensors)
        else:
            for layout, data in self.chain:
                files.fill(tensors, layout, data)
        if moments is not None:
            read_floats(self.folder / MOMENTS_FILE, moments)


def read_floats(path: Path, tensors: Targets) -> None:
    layout = read_layout(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if {entry.name: entry.shape for entry in layout.entries} != shapes:
        raise InvalidInput(f"{path.parent.name} holds other layers than this model has")
    with path.open("rb") as stream:
        for entry in layout.entries:
            stored = torch.from_numpy(read_bytes(stream, entry)).view(torch.float32)
            tensors[entry.name].copy_(stored.view(entry.shape))
