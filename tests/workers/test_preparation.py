"""What stands before the processes start, and the sentence where it cannot."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_django import Settings

from webapp.accounts.models import ApiKey, Project, User
from webapp.accounts.services import find_actor_of_key
from workers import preparation
from workers.preparation import CannotStart

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


def test_a_second_start_on_the_same_folder_is_told_so(tmp_path: Path) -> None:
    with (
        preparation.lock_state(tmp_path),
        pytest.raises(CannotStart, match="Another Hone is running"),
    ):
        preparation.lock_state(tmp_path)


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    preparation.lock_state(tmp_path).close()
    preparation.lock_state(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="cannot be written"):
        preparation.lock_state(tmp_path / "file" / "home")


def test_the_state_of_a_newer_version_is_left_alone(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"version": settings.STATE_VERSION + 1}))
    with pytest.raises(CannotStart, match="written by a newer Hone"):
        preparation.check_state_version(tmp_path)


def test_a_new_folder_gets_the_version_of_this_code(tmp_path: Path, settings: Settings) -> None:
    preparation.check_state_version(tmp_path)
    assert json.loads((tmp_path / "state.json").read_text()) == {"version": settings.STATE_VERSION}
    preparation.check_state_version(tmp_path)


def test_a_demo_is_prepared_once(tmp_path: Path) -> None:
    preparation.check_state_version(tmp_path)
    assert not preparation.is_demo_prepared(tmp_path, "tiny")
    preparation.note_demo(tmp_path, "tiny")
    assert preparation.is_demo_prepared(tmp_path, "tiny")
    assert not preparation.is_demo_prepared(tmp_path, "smollm2")
    preparation.check_state_version(tmp_path)


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 5 << 20))
    with pytest.raises(CannotStart, match="has 5 MiB free"):
        preparation.check_disk(tmp_path)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=f"Port {port} is taken"):
            preparation.check_port(port)
    preparation.check_port(port)


@pytest.mark.django_db
def test_the_first_owner_is_made_once() -> None:
    first, second = preparation.prepare_owner(), preparation.prepare_owner()
    assert first == second
    assert User.objects.count() == Project.objects.count() == 1


@pytest.mark.django_db
def test_the_key_of_the_last_start_is_kept_while_it_opens_the_door(tmp_path: Path) -> None:
    owner, file = preparation.prepare_owner(), tmp_path / "connection.json"
    first = preparation.prepare_key(owner, file)
    preparation.write_connection(file, url="http://127.0.0.1:1", api_key=first)
    assert preparation.prepare_key(owner, file) == first
    file.unlink()
    second = preparation.prepare_key(owner, file)
    assert second != first
    assert find_actor_of_key(first) is None
    assert find_actor_of_key(second) == replace(owner, key_id=ApiKey.objects.get().pk)
    assert ApiKey.objects.count() == 1


def test_only_its_owner_reads_the_connection_file(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    preparation.write_connection(file, url="http://127.0.0.1:1", api_key="tml-x")
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(file.read_text())) == {"url", "api_key", "pid"}


def test_a_new_state_folder_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "state"
    subprocess.run(
        [sys.executable, "-c", "import webapp.settings"],
        cwd=ROOT,
        env=os.environ | {"HONE_HOME": str(home), "SECRET_KEY": "x" * 50},
        check=True,
    )
    assert home.stat().st_mode & 0o777 == 0o700


def test_settings_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    for wrong in ({"PORT": "x"}, {"HONE_HOME": "/proc/nowhere"}):
        finished = subprocess.run(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT,
            env=os.environ | {"HONE_HOME": str(tmp_path)} | wrong,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 1
        assert finished.stderr.startswith("The settings cannot be read: ")
        assert finished.stderr.count("\n") == 1
