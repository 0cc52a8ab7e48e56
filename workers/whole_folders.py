"""Folders that a sampling server reads whole models from: checkpoints as they are, or restored."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from django.conf import settings

from training.deltas import restore_folder, restore_next
from training.errors import InvalidInput
from training.manifest import MASTER_FILE, MOMENTS_FILE, Manifest, read_manifest
from training.model_files import check_files, digest_weights, read_layouts

logger = logging.getLogger(__name__)

NOT_SERVED = (MASTER_FILE, MOMENTS_FILE)


def find_restored(worker: str) -> Path:
    """Where this worker's deltas lie as whole models while its server may read them."""
    return Path(settings.HONE_HOME) / "restored" / worker


def open_model(folder: Path, target: Path, before: Path | None = None) -> tuple[Path, str]:
    """What loaders read of a checkpoint of all weights, and the digest of the weights there.

    A delta is restored into `target`; a base is read where it lies, once its files are as written.
    `before`: where what the delta differs from lies restored, so that one delta is enough.
    """
    manifest = read_manifest(folder)
    if manifest.type != "delta":
        return folder, check_model(folder, manifest)
    if before is not None:
        try:
            _restore(folder, target, lambda: restore_next(folder, before, target))
        except InvalidInput as error:
            logger.warning("the whole chain is restored: %s", error)
        else:
            return target, manifest.digest
    _restore(folder, target, lambda: restore_folder(folder, target))
    return target, manifest.digest


def _restore(folder: Path, target: Path, write: Callable[[], None]) -> None:
    """Whole, or not there: half a model would only hold the disk."""
    remove_restored(target)
    try:
        target.mkdir(parents=True)
        write()
    except OSError as error:
        remove_restored(target)
        raise InvalidInput(
            f"{folder.name} could not be restored: {error.strerror or error}"
        ) from error
    except InvalidInput:
        remove_restored(target)
        raise


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
