"""Folders that a sampling server reads whole models from: checkpoints as they are, or restored."""

import shutil
from dataclasses import replace
from pathlib import Path

from django.conf import settings

from training.deltas import restore_folder
from training.errors import InvalidInput
from training.manifest import MASTER_FILE, MOMENTS_FILE, Manifest, read_manifest
from training.model_files import check_files, digest_weights, read_layouts

NOT_SERVED = (MASTER_FILE, MOMENTS_FILE)


def find_restored(worker: str) -> Path:
    """Where this worker's deltas lie as whole models while its server may read them."""
    return Path(settings.HONE_HOME) / "restored" / worker


def open_model(folder: Path, target: Path) -> tuple[Path, str]:
    """What loaders read of a checkpoint of all weights, and the digest of the weights there.

    A delta is restored into `target`; a base is read where it lies, once its files are as written.
    """
    manifest = read_manifest(folder)
    if manifest.type != "delta":
        return folder, check_model(folder, manifest)
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir(parents=True)
        restore_folder(folder, target)
    except OSError as error:
        raise InvalidInput(
            f"{folder.name} could not be restored: {error.strerror or error}"
        ) from error
    return target, manifest.digest


def check_model(folder: Path, manifest: Manifest) -> str:
    """The digest of weights that were compared with it, file by file."""
    served = {name: digest for name, digest in manifest.files.items() if name not in NOT_SERVED}
    check_files(folder, replace(manifest, files=served))
    names = [layout.file for layout in read_layouts(folder)]
    if missing := set(names) - served.keys():
        raise InvalidInput(f"{folder.name} is damaged: nothing was written down of {min(missing)}")
    return digest_weights({name: served[name] for name in names})


def remove_restored(target: Path) -> None:
    """A server that has the model in memory keeps what it has mapped of it."""
    shutil.rmtree(target, ignore_errors=True)
