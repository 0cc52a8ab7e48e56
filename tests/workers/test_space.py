"""Saves that find no room: refused before anything is written, and what becomes of their run."""

from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import Kind, Program, make_device, read_loss, take_turns
from tests.workers.test_recipe import TurnWaiter, drive, list_saved, make_sft_run
from webapp.accounts.models import Actor, Project
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.runs.models import LogLine, Operation, Run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, settings: Any) -> None:
    settings.HONE_HOME = tmp_path


def set_budget(num_bytes: int | None) -> None:
    Project.objects.update(disk_budget_bytes=num_bytes)


def test_a_program_is_told_that_there_is_no_room_and_its_weights_live_on(tmp_path: Path) -> None:
    program, device = Program(), make_device()
    program.create()
    first = program.learn(0)
    set_budget(1000)
    refused = [
        program.send(Kind.SAVE_WEIGHTS, name="a", ttl_seconds=None),
        program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="b"),
        program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="c"),
    ]
    program.step()
    later = program.learn(0)
    take_turns(device)
    for save in refused:
        save.refresh_from_db()
        assert (save.status, save.error_category) == (Operation.Status.FAILED, "user")
        assert "There is no room for the" in save.error
        assert "of a budget of 1000 B" in save.error
    assert not Checkpoint.objects.exists()
    assert not list((tmp_path / "checkpoints").glob("*/*"))
    assert read_loss(later) < read_loss(first)
    set_budget(None)
    saved = program.send(Kind.SAVE_WEIGHTS, name="a", ttl_seconds=None)
    take_turns(device)
    saved.refresh_from_db()
    assert saved.status == Operation.Status.DONE


def test_the_first_save_is_foreseen_to_a_tenth_and_the_next_ones_as_it_was() -> None:
    """An adapter with its moments: what is refused by the estimate would not have fitted."""
    program, device = Program(), make_device()
    program.create()
    take_turns(device)
    set_budget(1)
    refused = program.send(Kind.SAVE_WEIGHTS, name="a")
    take_turns(device)
    refused.refresh_from_db()
    set_budget(None)
    program.train(range(1))
    program.send(Kind.SAVE_WEIGHTS, name="a")
    take_turns(device)
    size_bytes = Checkpoint.objects.get().size_bytes
    told = float(refused.error.partition("about ")[2].partition(" KiB")[0]) * 1024
    assert told == pytest.approx(size_bytes, rel=0.1)
    set_budget(2 * size_bytes - 1)
    second = program.send(Kind.SAVE_WEIGHTS, name="b")
    replaced = program.send(Kind.SAVE_WEIGHTS, name="a", overwrite=True)
    take_turns(device)
    second.refresh_from_db()
    replaced.refresh_from_db()
    assert (second.status, replaced.status) == ("failed", "done")


class LaterRoom(TurnWaiter):
    """Somebody makes room once the first checkpoint was refused."""

    def wait(self, request_id: str) -> None:
        super().wait(request_id)
        if Operation.objects.filter(kind=Kind.SAVE_WEIGHTS, status="failed").exists():
            set_budget(None)


def test_a_recipes_checkpoint_on_the_way_is_missed_and_the_run_goes_on(
    actor: Actor, version: DatasetVersion
) -> None:
    run = make_sft_run(actor, version)
    set_budget(1000)
    ended = drive(run, LaterRoom())
    assert (ended.status, ended.step) == (Run.Status.DONE, 6)
    assert list_saved(run) == [("training", "step-000006", 6)]
    (line,) = LogLine.objects.filter(run=run, level=LogLine.Level.WARNING)
    assert line.text.startswith("Not saved after step 3: There is no room for the checkpoint")


def test_a_recipe_whose_last_checkpoint_finds_no_room_fails_and_says_so(
    actor: Actor, version: DatasetVersion
) -> None:
    run = make_sft_run(actor, version)
    set_budget(1000)
    ended = drive(run)
    assert (ended.status, ended.error_category) == (Run.Status.FAILED, "user")
    assert ended.error.startswith("the last checkpoint could not be saved: There is no room")
    assert list_saved(run) == []
