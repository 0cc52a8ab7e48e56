"""Checkpoints of all weights: what their pages say, what a download holds, what a copy becomes."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from tests.whole_folders import TINY, restore, write_base, write_delta
from training.manifest import read_manifest
from training.model_files import digest_file
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.copies import copy_checkpoint
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.lineage.nodes import checkpoint_node
from webapp.runs.models import Origin, Run

TRAINING = Checkpoint.Kind.TRAINING


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def run(alice: Actor) -> Run:
    base_model = BaseModel.objects.create(path=str(TINY), digest="ba5e" * 16)
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return Run.objects.create(
        project=alice.project,
        name="all of it",
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=0,
    )


@pytest.fixture
def base(run: Run, tmp_path: Path, settings: Settings) -> Checkpoint:
    settings.HONE_HOME = tmp_path
    manifest = write_base(tmp_path / "checkpoints" / "base")
    columns = {"path": "checkpoints/base", "digest": manifest.digest, "type": "base"}
    return make_checkpoint(
        run, name="step-20", kind=TRAINING, rank=0, has_optimizer=True, **columns
    )


@pytest.fixture
def delta(base: Checkpoint, tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "checkpoints"
    manifest = write_delta(folder / "delta", folder / "base", seed=1)
    columns = {"path": "checkpoints/delta", "digest": manifest.digest, "type": "delta"}
    return make_checkpoint(
        base.run, name="step-30", seq=30, rank=0, previous=base, ratio=0.0425, **columns
    )


def read(client: Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, answer.content[:500]
    return answer.content.decode()


def unpack(client: Client, url: str, folder: Path) -> Path:
    """The one folder of the archive."""
    answer = client.get(url)
    body = answer.getvalue()
    assert int(answer.headers["Content-Length"]) == len(body)
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


def test_a_page_says_that_it_holds_a_whole_model_and_what_needs_it(
    browser: Client, base: Checkpoint, delta: Checkpoint
) -> None:
    page = read(browser, f"/checkpoints/{base.pk}/")
    assert ("Weights", "All", "as a whole model") in browser.get(
        f"/checkpoints/{base.pk}/"
    ).context["stats"]
    assert '<span class="tag">base</span>' in page
    assert "Needed by" in page
    assert f"/checkpoints/{delta.pk}/" in page
    assert "Depends on" not in page


def test_a_delta_says_its_share_and_what_it_depends_on(
    browser: Client, base: Checkpoint, delta: Checkpoint
) -> None:
    page = read(browser, f"/checkpoints/{delta.pk}/")
    assert "as a delta: 4.2 % of a whole model" in page
    assert "Depends on" in page
    assert f'<a href="/checkpoints/{base.pk}/">step-20</a>' in page
    assert "Needed by" not in page


def test_lists_say_base_or_delta(browser: Client, delta: Checkpoint) -> None:
    for url in ("/checkpoints/", f"/runs/{delta.run_id}/?tab=checkpoints"):
        page = read(browser, url)
        assert '<span class="muted">base</span>' in page
        assert '<span class="muted">delta' in page
    assert checkpoint_node(delta, delta.project_id).detail == "step 10, sampler delta"


def test_an_adapters_page_is_as_it_was(browser: Client, run: Run) -> None:
    adapter = make_checkpoint(run)
    page = read(browser, f"/checkpoints/{adapter.pk}/")
    assert '<span class="tag">adapter</span>' not in page
    assert "Depends on" not in page


def test_rest_says_type_ratio_and_what_a_delta_depends_on(
    alice: Actor, base: Checkpoint, delta: Checkpoint
) -> None:
    _, secret = create_key(actor=alice, name="test")
    told = Client(headers={"X-API-Key": secret}).get(f"/rest/checkpoints/{delta.pk}").json()
    assert (told["rank"], told["type"], told["previous"]) == (0, "delta", base.pk)
    assert told["ratio"] == 0.0425


def test_what_a_delta_builds_on_is_not_deleted_before_it(
    alice: Actor, browser: Client, base: Checkpoint, delta: Checkpoint
) -> None:
    _, secret = create_key(actor=alice, name="test")
    program = Client(headers={"X-API-Key": secret})
    refused = program.delete(f"/rest/checkpoints/{base.pk}")
    assert refused.status_code == 400
    assert "step-20 cannot be deleted yet: step-30" in refused.json()["error"]["message"]
    page = browser.post(f"/checkpoints/{base.pk}/delete/").content.decode()
    assert "step-20 cannot be deleted yet: step-30" in page
    for checkpoint in (delta, base):
        assert program.delete(f"/rest/checkpoints/{checkpoint.pk}").status_code == 204


def test_a_download_of_a_base_is_a_model_folder_without_the_trainers_own_files(
    browser: Client, base: Checkpoint, tmp_path: Path
) -> None:
    folder = unpack(browser, f"/checkpoints/{base.pk}/download/", tmp_path / "out")
    names = {file.name for file in folder.iterdir()}
    sides = {file.name for file in TINY.iterdir() if file.suffix != ".md"}
    assert names == sides | {"README.md", "manifest.json"}
    assert digest_file(folder / "model.safetensors") == digest_file(TINY / "model.safetensors")
    assert "library_name: transformers" in (folder / "README.md").read_text()
    assert read_manifest(folder).digest == base.digest


def test_a_download_of_a_delta_is_the_whole_model_that_it_stands_for(
    browser: Client, delta: Checkpoint, tmp_path: Path
) -> None:
    folder = unpack(browser, f"/checkpoints/{delta.pk}/download/", tmp_path / "out")
    whole = restore(tmp_path / "checkpoints" / "delta", tmp_path / "restored")
    for file in whole.iterdir():
        assert digest_file(folder / file.name) == digest_file(file), file.name
    assert digest_file(folder / "model.safetensors") != digest_file(TINY / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["type"], manifest["digest"]) == ("base", delta.digest)


def test_a_download_of_a_damaged_delta_is_refused_in_words(
    browser: Client, delta: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "base" / "model.safetensors").write_bytes(b"other")
    answer = browser.get(f"/checkpoints/{delta.pk}/download/")
    assert answer.status_code == 400
    assert "The files of step-30 cannot be read: base is damaged" in answer.content.decode()


def test_a_copy_of_a_delta_is_a_whole_model_and_outlives_its_source(
    alice: Actor, delta: Checkpoint, base: Checkpoint, tmp_path: Path
) -> None:
    whole = restore(tmp_path / "checkpoints" / "delta", tmp_path / "restored")
    copy = copy_checkpoint(actor=alice, source=delta, project=make_actor("bob").project)
    assert (copy.type, copy.previous, copy.ratio) == ("base", None, None)
    assert (copy.digest, copy.rank, copy.run.rank) == (delta.digest, 0, 0)
    folder = tmp_path / copy.path
    weights = folder / "model.safetensors"
    assert digest_file(weights) == digest_file(whole / "model.safetensors")
    manifest = read_manifest(folder)
    assert manifest.files["model.safetensors"] == digest_file(weights)
    assert (manifest.type, manifest.previous) == ("base", "")
    assert copy.size_bytes > delta.size_bytes


def test_a_copy_of_a_delta_whose_base_is_damaged_is_refused(
    alice: Actor, delta: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "base" / "model.safetensors").unlink()
    with pytest.raises(Exception, match="The files of step-30 could not be copied: base is"):
        copy_checkpoint(actor=alice, source=delta, project=alice.project)
    assert Checkpoint.objects.count() == 2
