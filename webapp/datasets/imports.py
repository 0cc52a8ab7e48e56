"""Versions of files that nobody uploads: from a folder of this machine, or from the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from django.conf import settings
from django.template.defaultfilters import filesizeformat

from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import FORMATS, check_kind, check_name, insert_version

REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
REVISION = re.compile(r"[\w./-]{1,100}")
MAX_PATH = 400


def import_path(*, actor: Actor, name: str, path: str, kind: str = "") -> DatasetVersion:
    """A file of the folder that HONE_IMPORT_DIR names; a worker copies and checks it."""
    check_can_write(actor)
    if not actor.may_administer:
        raise UserError("Only an operator of this installation imports files of its machine.")
    file = find_file(path)
    if file.stat().st_size > settings.MAX_UPLOAD_BYTES:
        size, limit = (filesizeformat(n) for n in (file.stat().st_size, settings.MAX_UPLOAD_BYTES))
        raise UserError(f"{path} has {size}; up to {limit} are taken.", field="path")
    source = {"path": file.relative_to(find_folder()).as_posix()}
    return _create(actor, name, file.name, kind, source)


def find_folder() -> Path:
    if not settings.HONE_IMPORT_DIR:
        raise UserError(
            "No folder is set up for imports: start the server with HONE_IMPORT_DIR.", field="path"
        )
    return Path(settings.HONE_IMPORT_DIR).resolve()


def find_file(path: str) -> Path:
    """Inside the folder, links followed: what leads out of it is not there."""
    folder = find_folder()
    if not path or len(path) > MAX_PATH or "\x00" in path:
        raise UserError("Give the path of a file in the folder for imports.", field="path")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        raise UserError(f"There is no file {path[:200]} in the folder for imports.", field="path")
    return file


def import_hub(
    *, actor: Actor, name: str, repository: str, file: str = "", revision: str = "", kind: str = ""
) -> DatasetVersion:
    """A file of a dataset of the Hub. Without a name, its only one that holds rows."""
    check_can_write(actor)
    if not REPOSITORY.fullmatch(repository):
        raise UserError("A dataset of the Hub is named like owner/name.", field="repository")
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UserError("The revision is a branch, a tag or a commit.", field="revision")
    if len(file) > MAX_PATH or ".." in PurePosixPath(file).parts or file.startswith("/"):
        raise UserError("The file is a path within the dataset.", field="file")
    if file:
        _check_ending(file)
    source = {"hub": repository, "file": file, "revision": revision or "main"}
    return _create(actor, name, PurePosixPath(file).name or repository, kind, source)


def start_import(actor: Actor, wanted: Mapping[str, str]) -> DatasetVersion:
    """By what is named: a path, or a dataset of the Hub."""
    shared = {"actor": actor, "name": wanted["name"], "kind": wanted.get("kind", "")}
    if wanted.get("path"):
        return import_path(path=wanted["path"], **shared)  # type: ignore[arg-type]
    return import_hub(
        repository=wanted.get("repository", ""),
        file=wanted.get("file", ""),
        revision=wanted.get("revision", ""),
        **shared,  # type: ignore[arg-type]
    )


def _check_ending(name: str) -> None:
    if PurePosixPath(name).suffix.lower() not in FORMATS:
        raise UserError(
            f"{name[:200]} is of no known format: import .jsonl, .csv or .parquet.", field="file"
        )


def _create(
    actor: Actor, name: str, filename: str, kind: str, source: Mapping[str, Any]
) -> DatasetVersion:
    name = check_name(name)
    check_kind(kind)
    if "path" in source:
        _check_ending(filename)
    version = DatasetVersion(
        project=actor.project,
        filename=filename[-255:],
        format=FORMATS.get(PurePosixPath(filename).suffix.lower(), ""),
        kind=kind,
        derivation={"import": dict(source)},
        created_by=actor.user,
    )
    version.upload_path = f"uploads/{version.pk}/upload"
    insert_version(version, name)
    return version


def describe_source(source: Mapping[str, Any]) -> str:
    if "path" in source:
        return f"imported from {source['path']} of this machine's folder"
    file = f", {source['file']}" if source["file"] else ""
    return f"imported from {source['hub']}{file} of the Hub at {source['revision']}"
