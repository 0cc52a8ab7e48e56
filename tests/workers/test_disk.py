"""A disk that is full while a run wants to save."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tests.workers.cast import Kind, Program, make_device, read_loss, take_turns
from training.engine import checkpoint
from training.engine.core import Engine
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Operation

pytestmark = pytest.mark.django_db


def test_a_full_disk_is_said_in_a_sentence_and_the_weights_live_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = Program()
    program.create()
    first = program.learn(0)
    save = program.send(Kind.SAVE_WEIGHTS, name="a", ttl_seconds=None)
    program.step()
    later = program.learn(0)
    device = make_device()

    def save_weights(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Engine, "save_weights", save_weights)
    take_turns(device)
    save.refresh_from_db()
    assert (save.status, save.error_category) == (Operation.Status.FAILED, "server")
    assert "disk of the state folder is full" in save.error
    assert read_loss(later) < read_loss(first)


def fill_the_disk(_tensors: Any, file: Path, **_: Any) -> None:
    """As safetensors says it, with half of the file there."""
    file.write_bytes(b"half")
    raise SafetensorError(f"IoError: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")


def test_a_disk_that_fills_during_an_export_leaves_nothing_of_it_and_the_run_exports_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any
) -> None:
    settings.HONE_HOME = tmp_path
    program, device = Program(), make_device()
    program.create()
    program.train(range(1))
    take_turns(device)
    save = program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="a")
    with monkeypatch.context() as full:
        full.setattr(checkpoint, "save_file", fill_the_disk)
        take_turns(device)
    save.refresh_from_db()
    assert (save.status, save.error_category) == (Operation.Status.FAILED, "server")
    assert "disk of the state folder is full" in save.error
    assert not Checkpoint.objects.exists()
    assert list((tmp_path / "checkpoints").glob("*/*")) == []
    program.train(range(1, 2))
    again = program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="a")
    take_turns(device)
    again.refresh_from_db()
    assert again.status == Operation.Status.DONE
    saved = Checkpoint.objects.get()
    assert (saved.name, saved.step) == ("a", 2)
    assert saved.export_milliseconds is not None
    assert saved.export_milliseconds > 0
