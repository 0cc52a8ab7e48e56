"""age encryption of files: whom they are for, and each file made unreadable to everybody else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyrage

from training.errors import InvalidInput

MOST_RECIPIENTS = 10
SUFFIX = ".age"

Recipient = Any  # of the native kind or of SSH's: two types that share no ancestor


def read_recipients(given: Sequence[str]) -> list[Recipient]:
    """Native `age1...` keys and SSH public keys; InvalidInput names the one that is neither."""
    if not 1 <= len(given) <= MOST_RECIPIENTS:
        raise InvalidInput(
            f"age_encryption_recipients has {len(given)} keys: name 1 to {MOST_RECIPIENTS}, or"
            " leave it out for files that are not encrypted"
        )
    return [_read_recipient(index, text) for index, text in enumerate(given)]


def _read_recipient(index: int, text: str) -> Recipient:
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except (pyrage.RecipientError, ValueError):
        raise InvalidInput(
            f"age_encryption_recipients.{index} is {text[:80]!r}: send a public key of age"
            " (age1...) or of SSH (ssh-ed25519 or ssh-rsa)"
        ) from None


def encrypt_files(folder: Path, recipients: Sequence[Recipient]) -> None:
    """Every file of the folder gives its place to `<file>.age`."""
    for file in sorted(folder.iterdir()):
        pyrage.encrypt_file(str(file), str(file) + SUFFIX, recipients)
        file.unlink()
