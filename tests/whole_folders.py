"""Checkpoint folders of all weights as a trainer writes them, made of the tiny model's files."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.deltas import Chain, find_width, restore_folder, write_difference
from training.manifest import DELTA_FILE, MANIFEST_FILE, MOMENTS_FILE, Manifest, read_manifest
from training.model_files import ByteArray, digest_file, digest_weights
from training.types import LoraSpec, Probe

TINY = Path(__file__).parent / "assets" / "tiny-chatml-1m"
CHANGED = "model.layers.3.mlp.down_proj.weight"
NO_PROBE = Probe(tokens=(), logprobs=())


def write_base(folder: Path, probe: Probe = NO_PROBE) -> Manifest:
    """With an optimizer's state beside it, which is for the trainer alone."""
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.suffix != ".md":
            shutil.copyfile(file, folder / file.name)
    (folder / MOMENTS_FILE).write_bytes(b"moments")
    files = {file.name: digest_file(file) for file in folder.iterdir()}
    digest = digest_weights({"model.safetensors": files["model.safetensors"]})
    return write_manifest(folder, digest=digest, files=files, probe=probe, type="base")


def write_delta(folder: Path, previous: Path, *, seed: int, probe: Probe = NO_PROBE) -> Manifest:
    """Some bits of one layer are others than in the folder `previous` beside it."""
    folder.mkdir(parents=True)
    digests = {}
    with (folder / DELTA_FILE).open("wb") as stream:
        for layout, tensors in Chain(previous):
            digest = hashlib.sha256(layout.header)
            for entry, before in zip(layout.entries, tensors, strict=True):
                after = stir(before, seed) if entry.name == CHANGED else before
                write_difference(stream, before, after, find_width(entry))
                digest.update(after.data)
            digests[layout.file] = digest.hexdigest()
    before_it = read_manifest(previous)
    return write_manifest(
        folder,
        digest=digest_weights(digests),
        files={DELTA_FILE: digest_file(folder / DELTA_FILE)},
        probe=probe,
        type="delta",
        previous=previous.name,
        previous_digest=before_it.digest,
        ratio=0.25,
    )


def stir(data: ByteArray, seed: int) -> ByteArray:
    """Of numbers of two bytes the sign and the lowest exponent bit, here and there."""
    high = np.random.default_rng(seed).integers(0, 2, len(data), np.uint8) * np.uint8(0x80)
    high[0::2] = 0
    return np.ascontiguousarray(data ^ high)


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    same: dict[str, Any] = {
        "optimizer_digest": None,
        "base_digest": "b" * 64,
        "step": 3,
        "versions": {},
    }
    manifest = Manifest(spec=LoraSpec(rank=0), **same, **fields)
    (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest)))
    return manifest


def restore(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    restore_folder(folder, target)
    return target
