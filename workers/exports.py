"""Makes exports: a folder for another program, loaded again and compared, or none at all."""

import errno
import json
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from django.template.loader import render_to_string

from training.engine.checkpoint import ADAPTER_FILE, CONFIG_FILE, count_bytes, drafting, write_json
from training.engine.merge import Precision, merge_adapter, restore_model
from training.engine.shards import reclaim
from training.engine.verify import Agreement, verify_adapter, verify_model
from training.errors import InvalidInput
from training.manifest import read_manifest
from training.model_files import read_layouts
from training.types import Probe
from webapp.checkpoints.exports import (
    begin_export,
    fail_export,
    finish_export,
    place_export,
)
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import find_folder
from webapp.core.dispatch import EXPORT_CHECKPOINT, send_task
from workers.claims import MAX_ATTEMPTS, claim
from workers.room import count_free_bytes, count_model_bytes

# What reads a model sets types and devices for all threads of its process meanwhile.
ONE = threading.Lock()
AGAIN_SECONDS = 2.0
GIVEN_UP = (
    f"The process that made it ended {MAX_ATTEMPTS} times: the model may be too large for this"
    " machine's memory."
)
DISK_FULL = (
    "The disk of the state folder is full, and nothing was kept of the export: free some space,"
    " then ask for it again."
)
# Nats: what rounding to the stored type may do to a log-probability. A wrong merge does far more.
TOLERANCES = {"F32": 0.01, "F16": 0.2, "BF16": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What lies in a draft, and how far it is from what was trained."""

    digest: str
    agreement: Agreement


class Differs(InvalidInput):
    """What was written is not what was trained."""

    def __init__(self, agreement: Agreement, message: str) -> None:
        super().__init__(message)
        self.agreement = agreement


def make_export(export_id: str) -> None:
    """One at a time in this process: the rest come again, and keep no thread from other work."""
    if not ONE.acquire(blocking=False):
        send_task(EXPORT_CHECKPOINT, export_id, delay_seconds=AGAIN_SECONDS)
        return
    try:
        _make_claimed(export_id)
    finally:
        ONE.release()


def _make_claimed(export_id: str) -> None:
    """Begun again from nothing where a process ended in the middle of it."""
    with claim(export_id) as attempt:
        rows = Export.objects.select_related("checkpoint__run", "checkpoint__base_model")
        export = rows.filter(pk=export_id).first()
        if not attempt or export is None or not begin_export(export):
            return
        if attempt > MAX_ATTEMPTS:
            fail_export(export, GIVEN_UP)
            return
        try:
            _make(export)
        except Differs as error:
            differences = asdict(error.agreement)
            fail_export(export, f"{error}.", **differences)
        except InvalidInput as error:
            fail_export(export, f"{error}.")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            fail_export(export, DISK_FULL)


def _make(export: Export) -> None:
    folder, probe = place_export(export), read_probe(export.checkpoint)
    with drafting(folder) as draft:
        try:
            written = write(export, draft, probe)
        finally:
            reclaim(Path(export.checkpoint.base_model.path))  # this process lives on
        check(written.agreement, export)
        (draft / "README.md").write_text(write_card(export, written, probe))
    agreement = written.agreement
    is_kept = finish_export(
        export,
        digest=written.digest,
        size_bytes=count_bytes(folder),
        max_difference=agreement.max_difference,
        mean_difference=agreement.mean_difference,
    )
    if not is_kept:
        shutil.rmtree(folder, ignore_errors=True)


def read_probe(checkpoint: Checkpoint) -> Probe:
    return Probe(
        tokens=tuple(checkpoint.probe["tokens"]), logprobs=tuple(checkpoint.probe["logprobs"])
    )


def write(export: Export, draft: Path, probe: Probe) -> Written:
    checkpoint = export.checkpoint
    source, base = find_folder(checkpoint), Path(checkpoint.base_model.path)
    if export.kind == Export.Kind.PEFT:
        digest = copy_adapter(source, draft, checkpoint.run.model_name)
        agreement = verify_adapter(base, draft, probe, choose_dtype(base))
        return Written(digest=digest, agreement=agreement)
    precision: Precision = "bf16" if export.precision == "bf16" else "source"
    check_disk(base, draft)
    if checkpoint.is_full:
        digest = restore_model(source, draft, precision)
    else:
        digest = merge_adapter(base, source, draft, precision)
    return Written(digest=digest, agreement=verify_model(draft, probe, choose_dtype(draft)))


def copy_adapter(source: Path, draft: Path, base_name: str) -> str:
    """As it was saved, but for the base's name: where that lies here says nothing elsewhere."""
    manifest = read_manifest(source)
    try:
        fields = json.loads((source / CONFIG_FILE).read_text())
        shutil.copyfile(source / ADAPTER_FILE, draft / ADAPTER_FILE)
    except (ValueError, FileNotFoundError) as error:
        raise InvalidInput(f"{source.name} cannot be read as an adapter: {error}") from error
    write_json(draft / CONFIG_FILE, {**fields, "base_model_name_or_path": base_name})
    return manifest.digest


def check_disk(base: Path, draft: Path) -> None:
    """Before minutes go into what finds no room."""
    needed = sum(layout.num_bytes for layout in read_layouts(base))
    if needed > shutil.disk_usage(draft).free:
        raise OSError(errno.ENOSPC, "no room for a whole model")


def choose_dtype(model: Path) -> torch.dtype:
    """Float32 where it has room: then all that differs is what was rounded on its way to disk."""
    free = count_free_bytes("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        if count_model_bytes(model, dtype) <= free:
            return dtype
    needed = count_model_bytes(model, torch.bfloat16) / 2**30
    raise InvalidInput(
        f"the export takes {needed:.1f} GiB of memory to be loaded again, and this machine has"
        f" {free / 2**30:.1f} GiB free: free some"
    )


def check(agreement: Agreement, export: Export) -> None:
    dtypes = {
        entry.dtype
        for layout in read_layouts(Path(export.checkpoint.base_model.path))
        for entry in layout.entries
    }
    if export.precision == Export.Precision.BF16:
        dtypes.add("BF16")
    allowed = max(TOLERANCES.get(dtype, 0.0) for dtype in dtypes)
    if not agreement.max_difference <= allowed:
        raise Differs(
            agreement,
            f"the export, loaded again, differs from what was trained by up to"
            f" {agreement.max_difference:.2g} nats on fixed tokens, {allowed:g} is allowed: it was"
            " not kept",
        )


def write_card(export: Export, written: Written, probe: Probe) -> str:
    context = {
        "export": export,
        "checkpoint": export.checkpoint,
        "base_name": export.checkpoint.run.model_name,
        "digest": written.digest,
        "agreement": written.agreement,
        "num_tokens": len(probe.logprobs),
    }
    return render_to_string("checkpoints/export_card.md", context)


def fail(export_id: str, error: str) -> None:
    export = Export.objects.select_related("checkpoint").filter(pk=export_id).first()
    if export is not None:
        fail_export(export, error)
