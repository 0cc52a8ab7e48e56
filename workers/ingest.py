"""Uploads become dataset versions, and versions become previews of tokens."""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings

from training.data.previews import preview, preview_parts
from training.data.rows import detect_format, detect_kinds, read_rows
from training.data.tokenizer import ChatTokenizer
from training.data.validate import good_rows, read_normalised, validate, write_rows
from training.errors import InvalidInput
from webapp.core.events import project_group, publish
from webapp.datasets.models import DatasetVersion, Preview
from workers.claims import MAX_ATTEMPTS, claim
from workers.derive import derive, is_derived
from workers.imports import fetch

PREVIEW_ROWS = 20
STATS_ROWS = 500  # enough for a mean; a million rows must not hold a preview up

GIVEN_UP = (
    f"The process that read the file ended {MAX_ATTEMPTS} times; it may be too large for this"
    " machine's memory. Split it into several datasets."
)

logger = logging.getLogger(__name__)
Status = DatasetVersion.Status
Kind = DatasetVersion.Kind


def validate_version(version_id: str) -> None:
    """Validating -> ready, or needs_decision where bad lines were found and nobody has decided."""
    with claim(version_id) as attempt:
        version = DatasetVersion.objects.select_related("derived_from").get(pk=version_id)
        if not attempt or version.status != Status.VALIDATING:
            return
        if attempt > MAX_ATTEMPTS:
            _change(version, status=Status.FAILED, error=GIVEN_UP)
            return
        _validate(version)


def _validate(version: DatasetVersion) -> None:
    if is_derived(version):
        _derive(version)
        return
    upload = settings.HONE_HOME / version.upload_path
    try:
        if "import" in version.derivation and not upload.exists():
            name = fetch(version.derivation["import"], upload)
            _change(version, filename=name[-255:], size_bytes=upload.stat().st_size)
        if version.keep_valid is None:
            _report(version, upload)
        if version.status == Status.VALIDATING:
            _write_rows(version, upload)
    except InvalidInput as error:
        _change(version, status=Status.FAILED, error=str(error))


def _derive(version: DatasetVersion) -> None:
    try:
        report, written = derive(version)
        _change(
            version,
            report=report.to_json(),
            rows_path=version.upload_path,
            digest=written.digest,
            num_rows=written.num_rows,
            size_bytes=written.size_bytes,
            status=Status.READY,
        )
    except InvalidInput as error:
        _change(version, status=Status.FAILED, error=str(error))


def _report(version: DatasetVersion, upload: Path) -> None:
    format = detect_format(upload, version.filename)
    kinds = (version.kind,) if version.kind else detect_kinds(upload, format)
    if len(kinds) > 1:
        # The columns do not tell: somebody says which of these the rows are.
        report = {"kinds": list(kinds)}
        _change(version, format=format, report=report, status=Status.NEEDS_DECISION)
        return
    _check_rows(version, upload, format, kinds[0] if kinds else Kind.CONVERSATION)


def _check_rows(version: DatasetVersion, upload: Path, format: str, kind: str) -> None:
    report = validate(upload, format, kind)
    status = Status.NEEDS_DECISION if report.num_bad else Status.VALIDATING
    found = {"format": format, "kind": kind, "report": report.to_json(), "num_bad": report.num_bad}
    if not report.num_rows:
        first = report.bad[0]
        _change(version, **found)
        raise InvalidInput(f"no row is valid; the first: line {first.number}: {first.reason}")
    _change(
        version,
        **found,
        num_rows=report.num_rows,
        status=status,
    )


def _write_rows(version: DatasetVersion, upload: Path) -> None:
    target = upload.parent / "rows.jsonl"
    written = write_rows(good_rows(read_rows(upload, version.format, version.kind)), target)
    _change(
        version,
        rows_path=str(target.relative_to(settings.HONE_HOME)),
        digest=written.digest,
        num_rows=written.num_rows,
        status=Status.READY,
    )


def _change(version: DatasetVersion, **fields: Any) -> None:
    """Only while it validates: a version that was discarded meanwhile stays discarded."""
    changed = DatasetVersion.objects.filter(pk=version.pk, status=Status.VALIDATING).update(
        **fields
    )
    if changed != 1:
        raise InvalidInput("the version was changed while it was validated")
    for name, value in fields.items():
        setattr(version, name, value)
    publish(project_group(version.project_id), "datasets")


def fail(version_id: str, error: str) -> None:
    reading = DatasetVersion.objects.filter(pk=version_id, status=Status.VALIDATING)
    reading.update(status=Status.FAILED, error=error)


def preview_version(preview_id: str) -> None:
    row = Preview.objects.select_related("version", "base_model").get(pk=int(preview_id))
    tokenizer = ChatTokenizer.load(row.base_model.path)
    file = settings.HONE_HOME / row.version.rows_path
    context, kind = row.base_model.context_tokens, row.version.kind
    try:
        row.rows = preview(
            read_normalised(file), tokenizer, limit=PREVIEW_ROWS, max_length=context, kind=kind
        )
        row.stats = _measure(file, tokenizer, context, kind)
    except InvalidInput as error:
        row.rows, row.error = [], str(error)
    row.save(update_fields=["rows", "stats", "error"])
    publish(project_group(row.version.project_id), "datasets")


def _measure(file: Path, tokenizer: ChatTokenizer, context: int, kind: str) -> dict[str, float]:
    """Both answers of a preference count as one row's tokens; each has to fit by itself."""
    measured = [
        preview_parts(row, tokenizer, None, kind)
        for row in islice(read_normalised(file), STATS_ROWS)
    ]
    whole = [parts for parts in measured if not any(part["error"] for part in parts)]
    lengths = [[part["num_tokens"] for part in parts] for parts in whole] or [[0]]
    weighted = [sum(part["num_weighted"] for part in parts) for parts in whole] or [0]
    return {
        "rows_sampled": len(measured),
        "mean_tokens": sum(map(sum, lengths)) / len(lengths),
        "longest_tokens": max(map(max, lengths)),
        "mean_weighted": sum(weighted) / len(weighted),
        "num_too_long": sum(max(parts) > context for parts in lengths),
        "context_tokens": context,
    }


def fail_preview(preview_id: str, error: str) -> None:
    Preview.objects.filter(pk=int(preview_id)).update(rows=[], error=error)
