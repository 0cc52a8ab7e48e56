"""The disk budget: who sets it, what counts, and what is refused before it is written."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_viewer, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.lineage.conftest import make_run, make_version
from webapp.accounts.models import Actor, AuditEntry, Role
from webapp.accounts.services import change_disk_budget, create_key
from webapp.checkpoints.budgets import check_room, read_use
from webapp.checkpoints.copies import copy_checkpoint
from webapp.checkpoints.exports import request_export
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import delete_checkpoint
from webapp.core.errors import UserError
from webapp.runs.models import Run

STORAGE = "/settings/storage/"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def alice(db: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Actor:
    monkeypatch.setattr(settings, "HONE_HOME", tmp_path)
    return make_actor("alice")


@pytest.fixture
def run(alice: Actor) -> Run:
    return make_run(alice, make_base_model(), status="done")


def test_a_project_uses_what_lives_and_not_what_is_deleted(alice: Actor, run: Run) -> None:
    kept = make_checkpoint(run, name="kept", size_bytes=1000)
    make_checkpoint(run, name="passing", size_bytes=200, is_ephemeral=True)
    make_checkpoint(run, name="gone", size_bytes=5000, deleted_at=kept.created_at)
    Export.objects.create(project=alice.project, checkpoint=kept, kind="peft", size_bytes=30)
    make_version(alice, size_bytes=4)
    make_version(alice, 2, size_bytes=9999, status="failed")
    use = read_use(alice.project)
    assert (use.checkpoints, use.num_checkpoints, use.exports, use.datasets) == (1200, 2, 30, 4)
    assert (use.total, use.share, use.describe()) == (1234, None, "1.2 KiB used, without a budget")


def test_what_would_exceed_the_budget_is_refused_and_what_fits_is_not(
    alice: Actor, run: Run
) -> None:
    make_checkpoint(run, size_bytes=600)
    change_disk_budget(actor=alice, budget_bytes=1000)
    check_room(alice.project, 400, what="the checkpoint b")
    with pytest.raises(UserError) as refused:
        check_room(alice.project, 401, what="the checkpoint b")
    assert refused.value.message == (
        "There is no room for the checkpoint b, which takes about 401 B: the project has 600 B used"
        " of a budget of 1000 B. Delete checkpoints, or ask an owner for a larger budget."
    )
    check_room(alice.project, 900, what="a replacement", freed_bytes=600)


def test_the_disks_reserve_is_left_alone(alice: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DISK_RESERVE_BYTES", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9000, 7500, 1500))
    check_room(alice.project, 500, what="it")
    with pytest.raises(UserError, match=r"disk has 1.5 KiB free, and keeps 1000 B in reserve"):
        check_room(alice.project, 501, what="it")


def test_copies_and_exports_ask_for_room_and_a_full_project_can_still_delete(
    alice: Actor, run: Run
) -> None:
    saved = make_checkpoint(run, size_bytes=600)
    change_disk_budget(actor=alice, budget_bytes=500)
    with pytest.raises(UserError, match="no room for the copy of step-10"):
        copy_checkpoint(actor=alice, source=saved, project=alice.project)
    with pytest.raises(UserError, match="no room for the export"):
        request_export(actor=alice, checkpoint=saved, kind="peft")
    assert (Run.objects.count(), Export.objects.count()) == (1, 0)
    delete_checkpoint(actor=alice, checkpoint=saved)
    assert not Checkpoint.objects.alive().exists()


def test_owners_and_nobody_else_set_the_budget(alice: Actor) -> None:
    viewer = make_viewer(alice)
    member = Actor(user=viewer.user, project=alice.project, role=Role.MEMBER)
    for actor in (viewer, member):
        with pytest.raises(UserError, match="Only an owner"):
            change_disk_budget(actor=actor, budget_bytes=1)
    for odd in (-1, 2**63):
        with pytest.raises(UserError, match="from 0 to"):
            change_disk_budget(actor=alice, budget_bytes=odd)
    change_disk_budget(actor=alice, budget_bytes=5)
    change_disk_budget(actor=alice, budget_bytes=5)
    entry = AuditEntry.objects.get(event="project_disk_budget_changed")
    assert entry.details == {"before": None, "budget_bytes": 5}


def test_the_page_says_what_is_used_and_sets_the_budget(alice: Actor, run: Run) -> None:
    make_checkpoint(run, size_bytes=3 * 2**30)
    client = sign_in(alice)
    assert "no budget" in client.get(STORAGE).content.decode()
    assert client.post(STORAGE, {"budget": "4"}).status_code == 302
    page = client.get(STORAGE).content.decode()
    assert "of 4.0 GiB, 75 %" in page
    assert f"?run={run.pk}" in page
    client.post(STORAGE, {"budget": "2"})
    assert "over its budget" in client.get(STORAGE).content.decode()
    client.post(STORAGE, {"budget": ""})
    assert read_use(alice.project).budget is None
    for odd in ("-1", "much", "1e99", "nan"):
        assert (odd, client.post(STORAGE, {"budget": odd}).status_code) == (odd, 400)
    viewer = sign_in(make_viewer(alice))
    assert "sets its budget" in viewer.get(STORAGE).content.decode()
    assert viewer.post(STORAGE, {"budget": "9"}).status_code == 400


def test_rest_says_what_is_used_and_sets_the_budget(alice: Actor, run: Run) -> None:
    _, secret = create_key(actor=alice, name="test")
    client = Client(headers={"authorization": f"Bearer {secret}"})
    make_checkpoint(run, size_bytes=700)
    json: dict[str, Any] = {"content_type": "application/json"}
    told = client.put("/rest/storage", {"budget_bytes": 900}, **json).json()
    assert (told["used_bytes"], told["budget_bytes"], told["num_checkpoints"]) == (700, 900, 1)
    assert client.get("/rest/storage").json()["budget_bytes"] == 900
    for odd in ({"budget_bytes": -1}, {"budget_bytes": "x"}, {"budget_bytes": 2**70}, {}):
        assert (odd, client.put("/rest/storage", odd, **json).status_code) == (odd, 400)
    assert (
        client.put("/rest/storage", {"budget_bytes": None}, **json).json()["budget_bytes"] is None
    )


def test_the_list_sorts_by_size_and_says_what_all_take_together(alice: Actor, run: Run) -> None:
    for name, number in (("small", 1), ("large", 3), ("middle", 2)):
        make_checkpoint(run, name=name, size_bytes=number * 2**20)
    client = sign_in(alice)

    def list_names(query: str) -> list[str]:
        page = client.get(f"/checkpoints/{query}").content.decode()
        return sorted(("small", "large", "middle"), key=lambda name: page.index(f">{name}</a>"))

    assert list_names("?sort=-size") == ["large", "middle", "small"]
    assert list_names("?sort=size") == ["small", "middle", "large"]
    assert list_names("?sort=name") == ["large", "middle", "small"]
    assert client.get("/checkpoints/?sort=nonsense").status_code == 200
    page = client.get("/checkpoints/?q=l").content.decode()
    assert "3 checkpoints, 6.0 MiB." in " ".join(page.split())
    assert 'aria-sort="descending"' in page
