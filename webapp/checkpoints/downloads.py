"""A checkpoint's files on their way out, streamed: never a second copy on disk or in memory."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse
from django.template.loader import render_to_string

from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_folder
from webapp.core.errors import UserError

# The optimizer's state stays here: it is twice as large, and only this server continues with it.
FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
CONFIG = "adapter_config.json"
CARD = "README.md"
COMPLETE = "checkpoint_complete"  # empty: SDKs that fetch archives look for it
CHUNK_BYTES = 1024 * 1024
END = b"\0" * 2 * tarfile.BLOCKSIZE


class StreamedResponse(StreamingHttpResponse):
    """Streams under ASGI as well, where Django would first read a plain iterator to its end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self)
        while chunk := await sync_to_async(lambda: next(chunks, b""))():
            yield chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of an archive: bytes, or a place on the disk."""

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else _count(self.content)

    def read(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
        else:
            yield from read_chunks(self.content)


def _count(path: Path) -> int:
    return path.stat().st_size


def stream_archive(checkpoint: Checkpoint) -> StreamedResponse:
    """What `peft` loads, after `tar -xf`: one folder."""
    name = name_folder(checkpoint)
    return _stream(checkpoint, list_entries(checkpoint), f"{name}/")


def stream_flat_archive(checkpoint: Checkpoint) -> StreamedResponse:
    """The same without a folder, as SDKs unpack it into one that they have made."""
    return _stream(checkpoint, [*list_entries(checkpoint), Entry(name=COMPLETE, content=b"")], "")


def stream_file(path: Path) -> StreamedResponse:
    response = StreamedResponse(read_chunks(path), content_type="application/octet-stream")
    response.headers["Content-Length"] = str(_count(path))
    return response


def list_entries(checkpoint: Checkpoint) -> list[Entry]:
    """Exports are as they were written; others get a card, and a config without our own paths."""
    files = find_files(checkpoint)
    if checkpoint.is_external:
        return [Entry(name=path.name, content=path) for path in files]
    card = render_to_string("checkpoints/card.md", {"checkpoint": checkpoint}).encode()
    named = [
        Entry(name=path.name, content=name_base(checkpoint, path) if path.name == CONFIG else path)
        for path in files
    ]
    return [Entry(name=CARD, content=card), *named]


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


def _stream(checkpoint: Checkpoint, entries: Sequence[Entry], prefix: str) -> StreamedResponse:
    mtime = int(checkpoint.created_at.timestamp())
    response = StreamedResponse(
        write_archive(entries, prefix, mtime=mtime), content_type="application/x-tar"
    )
    response.headers["Content-Length"] = str(count_bytes(entries))
    name = name_folder(checkpoint)
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
