"""Sampler weights of full-parameter runs: a base, then deltas, kept while one builds on them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now

from tests.workers.cast import (
    Program,
    make_device,
    read_answer,
    take_turns,
)
from tests.workers.test_full_parameter import (
    act_for,
    list_checkpoints,
    make_full,
    restart,
    sample,
    save_steps,
)
from training.deltas import MAX_DELTAS, restore_folder
from training.manifest import DELTA_FILE
from training.model_files import WEIGHTS_FILE
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint, expire_checkpoints, find_folder
from webapp.core.errors import UserError
from webapp.runs import queue

pytestmark = pytest.mark.django_db


def test_sampler_weights_are_a_base_and_then_deltas() -> None:
    program = make_full()
    first, second, third = save_steps(program, 3)
    assert [each.type for each in (first, second, third)] == ["base", "delta", "delta"]
    assert [each.previous for each in (first, second, third)] == [None, first, second]
    assert first.ratio is None
    for delta in (second, third):
        assert delta.ratio is not None
        assert 0 < delta.ratio < 1
        assert delta.size_bytes < first.size_bytes
    assert [file.name for file in sorted(find_folder(third).iterdir())] == [
        "manifest.json",
        DELTA_FILE,
    ]


def test_a_delta_and_a_whole_save_of_the_same_weights_are_the_same_to_the_bit(
    tmp_path: Path,
) -> None:
    program = make_full()
    save_steps(program, 2)
    whole = sample(program, checkpoint_type="base")
    take_turns(restart())
    _, delta, base = list_checkpoints(program)
    assert read_answer(whole)["checkpoint_type"] == "base"
    assert (delta.digest, delta.probe) == (base.digest, base.probe)
    (tmp_path / "restored").mkdir()
    restore_folder(find_folder(delta), tmp_path / "restored")
    theirs = (find_folder(base) / WEIGHTS_FILE).read_bytes()
    assert (tmp_path / "restored" / WEIGHTS_FILE).read_bytes() == theirs


def test_after_many_deltas_comes_a_base() -> None:
    program = make_full()
    for _ in range(MAX_DELTAS + 2):
        sample(program)
    take_turns(make_device())
    types = [each.type for each in list_checkpoints(program)]
    assert types == ["base", *["delta"] * MAX_DELTAS, "base"]


def test_weights_are_saved_whole_where_what_a_delta_would_build_on_is_damaged() -> None:
    program = make_full()
    (first,) = save_steps(program, 1)
    (find_folder(first) / WEIGHTS_FILE).unlink()
    answer = sample(program)
    take_turns(restart())
    assert read_answer(answer)["checkpoint_type"] == "base"


def test_what_a_delta_builds_on_stays_as_long_as_the_delta() -> None:
    program = make_full()
    first, second, third = save_steps(program, 3)
    actor = act_for(program)
    with pytest.raises(UserError, match=f"{second.name} holds only what differs from it"):
        delete_checkpoint(actor=actor, checkpoint=first)
    Checkpoint.objects.filter(pk=first.pk).update(expires_at=now() - timedelta(seconds=1))
    assert expire_checkpoints() == 0
    for checkpoint in (third, second):
        delete_checkpoint(actor=actor, checkpoint=checkpoint)
    assert find_folder(first).exists()
    assert expire_checkpoints() == 1
    assert not find_folder(first).exists()


def test_a_whole_chain_of_deltas_expires_at_once() -> None:
    program = make_full()
    saved = save_steps(program, 3, ttl_seconds=60)
    Checkpoint.objects.update(expires_at=now() - timedelta(seconds=1))
    assert expire_checkpoints() == 3
    assert not any(find_folder(each).exists() for each in saved)


def test_a_delta_to_weights_that_it_replaces_keeps_them_under_another_name() -> None:
    program = make_full()
    first, second = save_steps(program, 2, name="latest", overwrite=True)
    assert (second.name, second.type, second.previous) == ("latest", "delta", first)
    assert first.name.startswith("latest~")
    assert first.deleted_at is None
    assert find_folder(first).exists()


def test_deleted_weights_are_nothing_to_build_on() -> None:
    program = make_full()
    (first,) = save_steps(program, 1)
    delete_checkpoint(actor=act_for(program), checkpoint=first)
    sample(program)
    take_turns(restart())
    assert list_checkpoints(program)[-1].type == "base"


@pytest.mark.parametrize("is_written", [False, True])
def test_weights_may_go_while_a_delta_to_them_is_made(
    monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    program = make_full()
    (first,) = save_steps(program, 1)
    saved, device = sample(program), restart()
    queue.lease_run(program.run, worker=device.name)
    held = device.hold(program.run)
    save = held.engine.save_weights

    def save_and_lose(*arguments: Any, **settings: Any) -> Any:
        done = save(*arguments, **settings) if is_written else None
        if first.deleted_at is None:
            delete_checkpoint(actor=act_for(program), checkpoint=first)
            first.refresh_from_db()
        return done or save(*arguments, **settings)

    monkeypatch.setattr(held.engine, "save_weights", save_and_lose)
    take_turns(device)
    saved.refresh_from_db()
    if is_written:
        assert (saved.status, saved.error_category) == ("failed", "user")
        assert "was deleted while a difference to it was being saved" in saved.error
        assert list_checkpoints(program) == [first]
        assert not list(find_folder(first).parent.iterdir())
    else:
        assert read_answer(saved)["checkpoint_type"] == "base"


@pytest.mark.parametrize("kind", ["arc", 7, ["base"]])
def test_another_type_of_checkpoint_is_refused(kind: object) -> None:
    program = make_full()
    refused = sample(program, checkpoint_type=kind)
    take_turns(make_device())
    refused.refresh_from_db()
    assert (refused.status, refused.error_category) == ("failed", "user")
    assert "choose base or delta" in refused.error


def test_an_adapters_weights_are_never_a_delta() -> None:
    program = Program()
    program.create()
    for kind in ("base", "delta", None):
        sample(program, **({"checkpoint_type": kind} if kind else {}))
    take_turns(make_device())
    assert {each.type for each in list_checkpoints(program)} == {"adapter"}
