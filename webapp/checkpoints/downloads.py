"""A checkpoint's folder as one tar file, streamed: never a second copy on disk or in memory."""

import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse
from django.template.loader import render_to_string

from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_folder
from webapp.core.errors import UserError

# The optimizer's state stays here: it is twice as large, and only this server continues with it.
FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
CARD = "README.md"
CHUNK_BYTES = 1024 * 1024
END = b"\0" * 2 * tarfile.BLOCKSIZE


class ArchiveResponse(StreamingHttpResponse):
    """Streams under ASGI as well, where Django would first read a plain iterator to its end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self)
        while chunk := await sync_to_async(lambda: next(chunks, b""))():
            yield chunk


def stream_archive(checkpoint: Checkpoint) -> ArchiveResponse:
    """What `peft` loads, after `tar -xf`."""
    files = find_files(checkpoint)
    name = name_folder(checkpoint)
    card = render_to_string("checkpoints/card.md", {"checkpoint": checkpoint}).encode()
    response = ArchiveResponse(
        write_archive(name, card, files, mtime=int(checkpoint.created_at.timestamp())),
        content_type="application/x-tar",
    )
    response.headers["Content-Length"] = str(count_bytes(card, files))
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.tar"'
    return response


def find_files(checkpoint: Checkpoint) -> list[Path]:
    folder = find_folder(checkpoint)
    if checkpoint.deleted_at is not None or not folder.is_dir():
        raise UserError(f"The files of {checkpoint.name} are no longer on this server's disk.")
    return [folder / file for file in FILES if (folder / file).is_file()]


def name_folder(checkpoint: Checkpoint) -> str:
    """Safe as a file name everywhere, whatever the checkpoint is called."""
    safe = "".join(each if each.isalnum() or each in "-_." else "-" for each in checkpoint.name)
    return f"{checkpoint.pk}-{safe.encode('ascii', 'ignore').decode()[:60]}".rstrip("-.")


def write_archive(name: str, card: bytes, files: list[Path], *, mtime: int) -> Iterator[bytes]:
    yield make_header(f"{name}/{CARD}", len(card), mtime) + card + pad(len(card))
    for path in files:
        size = path.stat().st_size
        yield make_header(f"{name}/{path.name}", size, mtime)
        yield from read_chunks(path)
        if padding := pad(size):
            yield padding
    yield END


def count_bytes(card: bytes, files: list[Path]) -> int:
    sizes = [len(card), *(path.stat().st_size for path in files)]
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
