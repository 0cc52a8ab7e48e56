"""Whom files are encrypted for."""

import pyrage
import pytest

from training.encryption import read_recipients
from training.errors import InvalidInput

SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust"


def make_key() -> str:
    return str(pyrage.x25519.Identity.generate().to_public())


def test_native_keys_and_ssh_keys_are_read() -> None:
    assert len(read_recipients([make_key(), SSH])) == 2


@pytest.mark.parametrize("bad", ["", "age1nope", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1", "\ud800"])
def test_one_that_is_no_key_is_named(bad: str) -> None:
    with pytest.raises(InvalidInput, match=r"age_encryption_recipients.1 is "):
        read_recipients([make_key(), bad])


@pytest.mark.parametrize("count", [0, 11])
def test_there_are_one_to_ten(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"has {count} keys: name 1 to 10"):
        read_recipients([make_key()] * count)
