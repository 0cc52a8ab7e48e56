"""Fetches what a version is to be made of: a file of this machine, or one of the Hub."""

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from django.conf import settings
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from training.errors import InvalidInput
from webapp.core.errors import UserError
from webapp.datasets.imports import find_file
from webapp.datasets.services import FORMATS

TIMEOUT_SECONDS = 20.0
MAX_LISTED = 10


def fetch(source: Mapping[str, Any], target: Path, api: HfApi | None = None) -> str:
    """The file at `target`, by rename; its name where it came from."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "path" not in source:
        return PurePosixPath(download(source, target, api or HfApi())).name
    try:
        file = find_file(source["path"])
    except UserError as error:
        raise InvalidInput(error.message) from error
    copy(file, target)
    return file.name


def copy(file: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(file, part)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def download(source: Mapping[str, Any], target: Path, api: HfApi) -> str:
    """Which of the dataset's files it was."""
    name = f"{source['hub']} at {source['revision']}"
    try:
        file = source["file"] or choose_file(source, api)
        check_size(source, file, api)
        with TemporaryDirectory(dir=target.parent) as folder:
            found = api.hf_hub_download(
                source["hub"],
                file,
                repo_type="dataset",
                revision=source["revision"],
                local_dir=folder,
            )
            Path(found).resolve().rename(target)
        return str(file)
    except HFValidationError as error:
        raise InvalidInput(f"{source['hub']!r} is no name of a dataset: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InvalidInput(
            f"the Hub answered {status} for {name}: {error.server_message}"
        ) from None
    except OfflineModeIsEnabled:
        raise InvalidInput("HF_HUB_OFFLINE is set: this server does not ask the Hub") from None
    except (httpx2.TransportError, OSError) as error:
        raise InvalidInput(
            f"the Hub cannot be reached from here ({type(error).__name__}): download {name} on a "
            "machine with a network, and upload the file"
        ) from None


def choose_file(source: Mapping[str, Any], api: HfApi) -> str:
    files = api.list_repo_files(source["hub"], repo_type="dataset", revision=source["revision"])
    rows = [file for file in files if PurePosixPath(file).suffix.lower() in FORMATS]
    held = [file for file in rows if not PurePosixPath(file).name.startswith(("dataset_info", "."))]
    if len(held) == 1:
        return held[0]
    if not held:
        raise InvalidInput(f"{source['hub']} has no .jsonl, .csv or .parquet file")
    listed = ", ".join(held[:MAX_LISTED]) + (" ..." if len(held) > MAX_LISTED else "")
    raise InvalidInput(f"{source['hub']} has {len(held)} files of rows, name one: {listed}")


def check_size(source: Mapping[str, Any], file: str, api: HfApi) -> None:
    found = api.get_paths_info(
        source["hub"], [file], repo_type="dataset", revision=source["revision"]
    )
    if not found:
        raise InvalidInput(f"{source['hub']} has no file {file}")
    size = getattr(found[0], "size", 0)
    if size > settings.MAX_UPLOAD_BYTES:
        raise InvalidInput(
            f"{file} has {size:,} bytes; up to {settings.MAX_UPLOAD_BYTES:,} are taken"
        )
