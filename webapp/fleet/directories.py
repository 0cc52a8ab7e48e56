"""What a model directory on disk is, read from its files alone; says why one cannot be trained."""

import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from training.architectures import Architecture, read_architecture
from training.errors import InvalidInput
from webapp.core.errors import UserError

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDirectory:
    """Facts of a directory that can be trained."""

    path: Path
    architecture: str
    num_parameters: int
    context_tokens: int
    vocab_size: int
    has_chat_template: bool
    digest: str


def inspect_directory(path: Path) -> ModelDirectory:
    """Raises `UserError` with the reason where the directory cannot be trained."""
    if not _is_directory(path):
        raise UserError(f"{path} is not a directory on this machine.", field="path")
    architecture = _read_architecture(path)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{path} has no .safetensors file: the weights are missing.", field="path")
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} has no tokenizer.json.", field="path")
    return ModelDirectory(
        path=path,
        architecture=architecture.name,
        num_parameters=sum(_count_parameters(file) for file in weights),
        context_tokens=architecture.context_tokens,
        vocab_size=architecture.vocab_size,
        has_chat_template=_has_chat_template(path),
        digest=_hash_files([path / "config.json", *weights]),
    )


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # its name is longer than any is
        return False


def _read_architecture(path: Path) -> Architecture:
    """The engine decides by the same file, in the same words."""
    try:
        return read_architecture(path)
    except InvalidInput as error:
        raise UserError(str(error), field="path") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}.", field="path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}", field="path") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object.", field="path")
    return content


def _count_parameters(file: Path) -> int:
    """From the header, which is a length and a JSON object: no tensor is read."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise UserError(f"{file.name} is not a safetensors file.", field="path")
            header = json.loads(stream.read(length))
        return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (*UNREADABLE, struct.error) as error:
        raise UserError(f"{file.name} is not a safetensors file: {error}", field="path") from None


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config).get("chat_template"))


def _hash_files(files: list[Path]) -> str:
    digest = sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
