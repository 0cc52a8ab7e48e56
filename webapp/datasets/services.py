"""Every write to datasets, their versions and the previews of them."""

import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from django.conf import settings
from django.core.files.base import File
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import IntegrityError, transaction
from django.db.models import Max, ProtectedError
from django.template.defaultfilters import filesizeformat
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.dispatch import INGEST_VERSION, PREVIEW_VERSION, send_task
from webapp.core.errors import UserError
from webapp.core.events import project_group, publish
from webapp.datasets.models import Dataset, DatasetVersion, Preview
from webapp.fleet.models import BaseModel

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"} | {
    ".parquet": "parquet"
}
MAX_NAME = 120
APPENDED = "rows.jsonl"
ANNOUNCED = timedelta(seconds=10)  # then a message should have been heard
PREVIEW_TIMEOUT = timedelta(minutes=2)  # a preview that took longer has lost its task

Status = DatasetVersion.Status
Kind = DatasetVersion.Kind


def create_version(
    *,
    actor: Actor,
    name: str,
    upload: "File[bytes]",
    after: int | None = None,
    kind: str = "",
    derivation: Mapping[str, Any] | None = None,
    num_splits: int = 0,
) -> DatasetVersion:
    """Keep the file as the next version of the dataset of this name; a worker validates it.

    `after`: the version that it was made of, which must still be the newest one; 0: none.
    `kind`: what its rows are; empty: as its columns say. `derivation`: where they come from,
    and `num_splits`: how often they were split there.
    """
    check_can_write(actor)
    name = check_name(name)
    check_kind(kind)
    filename = PurePosixPath((upload.name or "").replace("\\", "/")).name
    version = DatasetVersion(
        project=actor.project,
        filename=filename[-255:],
        format=_check_upload(upload, filename),
        kind=kind,
        derivation=dict(derivation or {}),
        num_splits=num_splits,
        size_bytes=upload.size,
        created_by=actor.user,
    )
    version.upload_path = f"uploads/{version.pk}/upload{PurePosixPath(filename).suffix.lower()}"
    target: Path = settings.HONE_HOME / version.upload_path
    is_stored = False
    try:
        _store(upload, target)
        insert_version(version, name, after)
        is_stored = True
    finally:
        if not is_stored:
            shutil.rmtree(target.parent, ignore_errors=True)
    return version


def append_row(*, actor: Actor, name: str, row: Mapping[str, Any]) -> DatasetVersion:
    """The next version of this dataset: the rows of its newest one, and one more.

    A name that is new makes a dataset of one row.
    """
    check_can_write(actor)
    newest = _find_newest(actor, check_name(name))
    with TemporaryUploadedFile(APPENDED, "application/jsonl", 0, "utf-8") as file:
        if newest is not None:
            _copy_rows(newest, file)
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        file.size = file.tell()
        return create_version(
            actor=actor,
            name=name,
            upload=file,
            after=newest.number if newest else 0,
            kind=_find_appended_kind(newest),
            num_splits=newest.num_splits if newest else 0,
        )


def _find_appended_kind(newest: DatasetVersion | None) -> str:
    """What is appended is a conversation: among pairs or texts it would be no row."""
    if newest is None or newest.kind in ("", Kind.CONVERSATION, Kind.PROMPT_COMPLETION):
        return Kind.CONVERSATION
    raise UserError(
        f"{newest} holds rows of the kind {newest.get_kind_display().lower()}: a conversation is"
        " none of them. Choose another dataset.",
        field="name",
    )


def _find_newest(actor: Actor, name: str) -> DatasetVersion | None:
    """Of which the rows are known, or known to be lines of JSON."""
    versions = DatasetVersion.objects.filter(dataset__project=actor.project, dataset__name=name)
    newest = versions.exclude(status__in=(Status.FAILED, Status.DISCARDED)).first()
    is_lines = newest is not None and newest.format == "jsonl"
    if newest is None or newest.status == Status.READY:
        return newest
    if newest.status == Status.NEEDS_DECISION or not is_lines:
        raise UserError(
            f"{newest} is not ready: it can get another row once its lines are checked.",
            field="name",
        )
    return newest


def _copy_rows(version: DatasetVersion, file: TemporaryUploadedFile) -> None:
    path = version.rows_path or version.upload_path
    try:
        with (settings.HONE_HOME / path).open("rb") as rows:
            shutil.copyfileobj(rows, file)
            rows.seek(-1, os.SEEK_END)
            if rows.read(1) != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        raise UserError(f"{version} was deleted at this moment.", field="name") from None


def decide(*, actor: Actor, version: DatasetVersion, keep_valid: bool) -> None:
    """Answer to bad lines: go on with the valid rows, or discard the version and its file."""
    check_can_write(actor, project_id=version.project_id)
    waiting = DatasetVersion.objects.visible_to(actor).filter(pk=version.pk)
    status = Status.VALIDATING if keep_valid else Status.DISCARDED
    with transaction.atomic():
        asked = waiting.filter(status=Status.NEEDS_DECISION)
        if keep_valid:
            asked = asked.exclude(kind="")
        if asked.update(status=status, keep_valid=keep_valid) != 1:
            if keep_valid and waiting.filter(status=Status.NEEDS_DECISION, kind="").exists():
                raise UserError(f"{version} needs its kind first: choose one.", field="kind")
            raise UserError(f"{version} waits for no decision: somebody has decided already.")
        if keep_valid:
            send_task(INGEST_VERSION, version.pk)
        else:
            transaction.on_commit(partial(_remove_files, version))
        publish(project_group(version.project_id), "datasets")
    version.refresh_from_db()


def choose_kind(*, actor: Actor, version: DatasetVersion, kind: str) -> None:
    """Answer to columns that do not tell: its lines are then checked as rows of this kind."""
    check_can_write(actor, project_id=version.project_id)
    check_kind(kind or "none")
    waiting = DatasetVersion.objects.visible_to(actor).filter(
        pk=version.pk, status=Status.NEEDS_DECISION, kind=""
    )
    with transaction.atomic():
        if waiting.update(status=Status.VALIDATING, kind=kind, report={}) != 1:
            raise UserError(f"{version} does not ask for its kind.", field="kind")
        send_task(INGEST_VERSION, version.pk)
        publish(project_group(version.project_id), "datasets")
    version.refresh_from_db()


def announce_validating() -> None:
    """For messages that were lost and workers that died: who is at it already is not disturbed."""
    late = DatasetVersion.objects.filter(created_at__lt=now() - ANNOUNCED)
    for pk in late.filter(status=Status.VALIDATING).values_list("pk", flat=True):
        send_task(INGEST_VERSION, pk)


def request_preview(*, version: DatasetVersion, base_model: BaseModel) -> Preview:
    """The version as this model's tokens. Its rows are None until a worker has made them."""
    if version.status != Status.READY:
        raise UserError(f"{version} is not ready: its rows can be shown once it is.")
    preview, is_new = Preview.objects.get_or_create(version=version, base_model=base_model)
    stale = Preview.objects.filter(
        pk=preview.pk, rows__isnull=True, created_at__lt=now() - PREVIEW_TIMEOUT
    )
    if is_new or stale.update(created_at=now()):
        send_task(PREVIEW_VERSION, str(preview.pk))
    return preview


def retry_preview(*, version: DatasetVersion, base_model: BaseModel) -> Preview:
    """Once more where it has failed."""
    Preview.objects.filter(version=version, base_model=base_model).exclude(error="").delete()
    return request_preview(version=version, base_model=base_model)


def delete_version(*, actor: Actor, version: DatasetVersion) -> None:
    """Its rows and files; not while a run or a suite was made of it. An empty dataset goes too."""
    check_can_write(actor, project_id=version.project_id)
    with transaction.atomic():
        try:
            DatasetVersion.objects.visible_to(actor).filter(pk=version.pk).delete()
        except ProtectedError:
            raise UserError(
                f"{version} cannot be deleted: runs or evaluation suites were made of it."
            ) from None
        transaction.on_commit(partial(_remove_files, version))
        if not DatasetVersion.objects.filter(dataset_id=version.dataset_id).exists():
            Dataset.objects.visible_to(actor).filter(pk=version.dataset_id).delete()
        publish(project_group(version.project_id), "datasets")


def check_name(name: str) -> str:
    name = name.strip()
    if not name:
        raise UserError("A dataset needs a name.", field="name")
    if len(name) > MAX_NAME:
        raise UserError(
            f"The name has {len(name)} characters; {MAX_NAME} are allowed.", field="name"
        )
    return name


def check_kind(kind: str) -> None:
    if kind and kind not in Kind.values:
        raise UserError(f"The kind is one of {', '.join(Kind.values)}.", field="kind")


def _check_upload(upload: "File[bytes]", filename: str) -> str:
    """The format that the file's name says; its content is looked at by the worker."""
    format = FORMATS.get(PurePosixPath(filename).suffix.lower())
    if format is None:
        raise UserError(
            f"{filename or 'The file'} is of no known format: upload .jsonl, .csv or .parquet.",
            field="file",
        )
    if not upload.size:
        raise UserError(f"{filename} is empty: upload a file with at least one row.", field="file")
    if upload.size > settings.MAX_UPLOAD_BYTES:
        size, limit = filesizeformat(upload.size), filesizeformat(settings.MAX_UPLOAD_BYTES)
        raise UserError(
            f"{filename} has {size}; up to {limit} are taken. Split it into several datasets.",
            field="file",
        )
    return format


def _store(upload: "File[bytes]", target: Path) -> None:
    """Large uploads lie on this disk already and are renamed; others are copied piece by piece."""
    target.parent.mkdir(parents=True)
    if isinstance(upload, TemporaryUploadedFile):
        Path(upload.temporary_file_path()).rename(target)
        return
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as file:
        for chunk in upload.chunks():
            file.write(chunk)
    part.rename(target)


def insert_version(version: DatasetVersion, name: str, after: int | None = None) -> None:
    """As the next one of the dataset of this name; a worker makes it ready."""
    while True:
        dataset, _ = Dataset.objects.get_or_create(project=version.project, name=name)
        kept = dataset.versions.exclude(status__in=(Status.FAILED, Status.DISCARDED))
        last = dataset.versions.aggregate(last=Max("number"))["last"]
        if after is not None and (kept.aggregate(last=Max("number"))["last"] or 0) != after:
            raise UserError(
                f"Somebody else changed {name} at this moment: try once more.", field="name"
            )
        version.dataset, version.number = dataset, (last or 0) + 1
        try:
            with transaction.atomic():
                version.save(force_insert=True)
                send_task(INGEST_VERSION, version.pk)
                publish(project_group(version.project_id), "datasets")
        except IntegrityError:
            continue  # somebody else's upload took the number at this moment
        return


def _remove_files(version: DatasetVersion) -> None:
    shutil.rmtree((settings.HONE_HOME / version.upload_path).parent, ignore_errors=True)
