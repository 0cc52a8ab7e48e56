"""A checkpoint's files on their way out, streamed: never a second copy on disk or in memory."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from django.conf import settings
from django.template.loader import render_to_string

from training.deltas import Chain
from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, MASTER_FILE, MOMENTS_FILE, Manifest, read_manifest
from training.model_files import Layout
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import find_folder
from webapp.core.errors import UserError
from webapp.core.streams import StreamedResponse

# The optimizer's state stays here: it is twice as large, and only this server continues with it.
FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
CONFIG = "adapter_config.json"
CARD = "README.md"
COMPLETE = "checkpoint_complete"  # empty: SDKs that fetch archives look for it
CHUNK_BYTES = 1024 * 1024
END = b"\0" * 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that is made while it is sent, once, in its turn."""

    size: int
    make: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of an archive: bytes, a place on the disk, or how it is made."""

    name: str
    content: bytes | Path | Made

    @property
    def size(self) -> int:
        if isinstance(self.content, Made):
            return self.content.size
        return len(self.content) if isinstance(self.content, bytes) else _count(self.content)

    def read(self) -> Iterator[bytes]:
        if isinstance(self.content, Made):
            yield from self.content.make()
        elif isinstance(self.content, bytes):
            yield self.content
        else:
            yield from read_chunks(self.content)


def _count(path: Path) -> int:
    return path.stat().st_size


def stream_archive(checkpoint: Checkpoint) -> StreamedResponse:
    """What `peft` or, of all weights, `transformers` loads, after `tar -xf`: one folder."""
    name = name_folder(checkpoint)
    mtime = int(checkpoint.created_at.timestamp())
    return _stream(name, list_entries(checkpoint), f"{name}/", mtime=mtime)


def stream_flat_archive(checkpoint: Checkpoint) -> StreamedResponse:
    """The same without a folder, as SDKs unpack it into one that they have made."""
    entries = [*list_entries(checkpoint), Entry(name=COMPLETE, content=b"")]
    mtime = int(checkpoint.created_at.timestamp())
    return _stream(name_folder(checkpoint), entries, "", mtime=mtime)


def stream_export(export: Export) -> StreamedResponse:
    """The folder as it was written and loaded again."""
    folder = Path(settings.HONE_HOME) / export.path
    if not export.is_ready or not folder.is_dir():
        raise UserError(f"The files of the export {export.pk} are not on this server's disk.")
    entries = [Entry(name=path.name, content=path) for path in sorted(folder.iterdir())]
    name = f"{name_folder(export.checkpoint)}-{export.kind}"
    return _stream(name, entries, f"{name}/", mtime=int(export.created_at.timestamp()))


def stream_file(path: Path) -> StreamedResponse:
    response = StreamedResponse(read_chunks(path), content_type="application/octet-stream")
    response.headers["Content-Length"] = str(_count(path))
    return response


def list_entries(checkpoint: Checkpoint) -> list[Entry]:
    """Exports are as they were written; others get a card, and a config without our own paths."""
    files = find_files(checkpoint)
    if checkpoint.is_external:
        return [Entry(name=path.name, content=path) for path in files]
    template = "checkpoints/model_card.md" if checkpoint.is_full else "checkpoints/card.md"
    card = Entry(name=CARD, content=render_to_string(template, {"checkpoint": checkpoint}).encode())
    if checkpoint.is_full:
        return [card, *list_model(checkpoint)]
    named = [
        Entry(name=path.name, content=name_base(checkpoint, path) if path.name == CONFIG else path)
        for path in files
    ]
    return [card, *named]


def list_model(checkpoint: Checkpoint) -> list[Entry]:
    """The folder of a whole model. A delta becomes one on its way out, tensor by tensor."""
    folder = find_folder(checkpoint)
    try:
        manifest = read_manifest(folder)
        files = restore_entries(folder) if checkpoint.is_delta else find_entries(folder, manifest)
    except InvalidInput as error:
        raise UserError(f"The files of {checkpoint.name} cannot be read: {error}.") from error
    described = replace(
        manifest, type="base", files={}, previous="", previous_digest="", ratio=None
    )
    written = json.dumps(asdict(described), indent=2, sort_keys=True).encode() + b"\n"
    return [Entry(name=MANIFEST_FILE, content=written), *files]


def find_entries(folder: Path, manifest: Manifest) -> list[Entry]:
    names = [name for name in manifest.files if name not in (MASTER_FILE, MOMENTS_FILE)]
    return [Entry(name=name, content=folder / name) for name in sorted(names)]


def restore_entries(folder: Path) -> list[Entry]:
    """In the order of its files: each one's differences lie behind those of the file before."""
    chain = Chain(folder)
    weights = {layout.file for layout in chain.layouts}
    sides = find_entries(chain.base, chain.folders[0][1])
    files = iter(chain)

    def make() -> Iterator[bytes]:
        layout, tensors = next(files)
        yield layout.header
        for tensor in tensors:
            for start in range(0, len(tensor), CHUNK_BYTES):
                yield tensor[start : start + CHUNK_BYTES].tobytes()

    restored = [
        Entry(name=layout.file, content=Made(size=count_layout(layout), make=make))
        for layout in chain.layouts
    ]
    return [*(side for side in sides if side.name not in weights), *restored]


def count_layout(layout: Layout) -> int:
    return len(layout.header) + sum(entry.stop - entry.start for entry in layout.entries)


def name_base(checkpoint: Checkpoint, config: Path) -> bytes:
    """By the model's name: where it lies on this server says nothing elsewhere."""
    fields = json.loads(config.read_text())
    fields["base_model_name_or_path"] = checkpoint.run.model_name
    return json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n"


def find_files(checkpoint: Checkpoint) -> list[Path]:
    folder = find_folder(checkpoint)
    if checkpoint.deleted_at is not None or not folder.is_dir():
        raise UserError(f"The files of {checkpoint.name} are no longer on this server's disk.")
    if checkpoint.is_external:
        return sorted(folder.iterdir())
    return [folder / file for file in FILES if (folder / file).is_file()]


def name_folder(checkpoint: Checkpoint) -> str:
    """Safe as a file name everywhere, whatever the checkpoint is called."""
    safe = "".join(each if each.isalnum() or each in "-_." else "-" for each in checkpoint.name)
    return f"{checkpoint.pk}-{safe.encode('ascii', 'ignore').decode()[:60]}".rstrip("-.")


def _stream(name: str, entries: Sequence[Entry], prefix: str, *, mtime: int) -> StreamedResponse:
    response = StreamedResponse(
        write_archive(entries, prefix, mtime=mtime), content_type="application/x-tar"
    )
    response.headers["Content-Length"] = str(count_bytes(entries))
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.tar"'
    return response


def write_archive(entries: Sequence[Entry], prefix: str, *, mtime: int) -> Iterator[bytes]:
    for entry in entries:
        yield make_header(f"{prefix}{entry.name}", entry.size, mtime)
        yield from filter(None, entry.read())
        if padding := pad(entry.size):
            yield padding
    yield END


def count_bytes(entries: Sequence[Entry]) -> int:
    sizes = [entry.size for entry in entries]
    return sum(tarfile.BLOCKSIZE + size + len(pad(size)) for size in sizes) + len(END)


def make_header(name: str, size: int, mtime: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, mtime, 0o644
    # GNU and not PAX: one header of one block for each file, so that the length is known before.
    return entry.tobuf(tarfile.GNU_FORMAT)


def pad(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
