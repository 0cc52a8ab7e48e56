"""A disk that is full while a run wants to save."""

import errno
import os
from typing import Any

import pytest

from tests.workers.cast import Kind, Program, make_device, read_loss, take_turns
from training.engine.core import Engine
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
