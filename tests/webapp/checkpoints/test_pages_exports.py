"""The section of exports on a checkpoint's page, and who may do what with them."""

from pathlib import Path

import pytest
from django.test import Client
from pytest_django import Settings

from tests.webapp.cast import make_actor, make_viewer, sign_in
from tests.webapp.checkpoints.test_pages import make_run, read
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint, Export
from webapp.fleet.models import BaseModel, BaseModelName


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def checkpoint(alice: Actor) -> Checkpoint:
    base_model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return make_checkpoint(make_run(alice, base_model))


def make_ready(checkpoint: Checkpoint, home: Path, **columns: object) -> Export:
    export = Export.objects.create(
        project=checkpoint.project,
        checkpoint=checkpoint,
        kind="merged",
        status="ready",
        size_bytes=2_000_000,
        max_difference=3e-5,
        mean_difference=1e-5,
        **columns,
    )
    folder = home / "exports" / checkpoint.pk / export.pk
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    Export.objects.filter(pk=export.pk).update(path=str(folder.relative_to(home)))
    return export


def test_an_export_is_asked_for_on_the_page_and_stands_there(
    browser: Client, checkpoint: Checkpoint
) -> None:
    page = read(browser, f"/checkpoints/{checkpoint.pk}/")
    assert "loaded again and compared with the trainer before it is offered" in page
    answer = browser.post(f"/checkpoints/{checkpoint.pk}/exports/", {"kind": "merged"})
    assert answer.headers["Location"] == f"/checkpoints/{checkpoint.pk}/#exports"
    assert Export.objects.get().status == "queued"
    assert "whole model" in read(browser, f"/checkpoints/{checkpoint.pk}/")


def test_a_ready_one_says_how_exact_it_is_and_is_downloaded(
    browser: Client, checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    settings.HONE_HOME = tmp_path
    export = make_ready(checkpoint, tmp_path)
    page = read(browser, f"/checkpoints/{checkpoint.pk}/")
    assert f"/exports/{export.pk}/download/" in page
    assert "mean 1e-5" in page or "1e-05" in page
    answer = browser.get(f"/exports/{export.pk}/download/")
    assert b"weights" in b"".join(answer)
    assert f"{checkpoint.pk}-step-10-merged.tar" in answer.headers["Content-Disposition"]
    browser.post(f"/exports/{export.pk}/delete/")
    assert not list((tmp_path / "exports").rglob("*.safetensors"))
    assert browser.get(f"/exports/{export.pk}/download/").status_code == 404


def test_one_that_failed_says_why_and_offers_nothing(
    browser: Client, checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    settings.HONE_HOME = tmp_path
    export = make_ready(checkpoint, tmp_path, error="The disk is full.")
    Export.objects.update(status="failed")
    page = read(browser, f"/checkpoints/{checkpoint.pk}/")
    assert "The disk is full." in page
    assert f"/exports/{export.pk}/download/" not in page
    refused = browser.get(f"/exports/{export.pk}/download/")
    assert refused.status_code == 400


def test_viewers_read_and_strangers_find_nothing(
    alice: Actor, checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    settings.HONE_HOME = tmp_path
    export = make_ready(checkpoint, tmp_path)
    viewer = sign_in(make_viewer(alice))
    assert "Export a merged model" not in read(viewer, f"/checkpoints/{checkpoint.pk}/")
    assert viewer.get(f"/exports/{export.pk}/download/").status_code == 200
    assert viewer.post(f"/exports/{export.pk}/delete/").status_code in (400, 403)
    stranger = sign_in(make_actor("charlie"))
    for path in (f"/exports/{export.pk}/download/", f"/checkpoints/{checkpoint.pk}/"):
        assert stranger.get(path).status_code == 404
    _, secret = create_key(actor=make_actor("dora"), name="laptop")
    program = Client(headers={"X-API-Key": secret})
    assert program.get(f"/rest/exports/{export.pk}").status_code == 404
    assert program.delete(f"/rest/exports/{export.pk}").status_code == 404
    assert Export.objects.filter(pk=export.pk).exists()


def test_a_key_asks_for_kinds_that_there_are(alice: Actor, checkpoint: Checkpoint) -> None:
    _, secret = create_key(actor=alice, name="laptop")
    program = Client(headers={"X-API-Key": secret})
    url = f"/rest/checkpoints/{checkpoint.pk}/exports"
    assert program.post(url, {"kind": "gguf"}, content_type="application/json").status_code == 400
    asked = program.post(url, {"kind": "peft"}, content_type="application/json").json()
    assert (asked["kind"], asked["precision"], asked["status"]) == ("peft", "source", "queued")
    again = program.post(url, {"kind": "peft"}, content_type="application/json").json()
    assert again["id"] == asked["id"]
    assert program.delete(f"/rest/exports/{asked['id']}").status_code == 204
    assert program.get(url).json() == []
