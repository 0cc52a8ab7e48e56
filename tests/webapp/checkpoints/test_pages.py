"""Pages of checkpoints: the list, one with its proof, downloads."""

import io
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from tests.webapp.cast import count_queries, make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.downloads import CHUNK_BYTES, stream_archive
from webapp.checkpoints.models import Checkpoint
from webapp.core.streams import PIECE_BYTES
from webapp.deployments.models import Deployment, HotLoad
from webapp.fleet.models import BaseModel, BaseModelName
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
    base_model = BaseModel.objects.create(path="/models/tiny", digest="ba5e" * 16)
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return make_run(alice, base_model)


def make_run(actor: Actor, base_model: BaseModel, name: str = "first", **columns: object) -> Run:
    return Run.objects.create(
        project=actor.project,
        name=name,
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=8,
        **columns,
    )


def read(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return response.content.decode()


def make_files(checkpoint: Checkpoint, home: Path, **contents: bytes) -> None:
    folder = home / checkpoint.path
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def test_an_empty_list_says_where_checkpoints_come_from(browser: Client) -> None:
    page = read(browser, "/checkpoints/")
    assert "No checkpoints yet" in page
    assert "save_state" in page


def test_the_list_shows_step_size_digest_and_what_a_run_began_with(
    alice: Actor, browser: Client, run: Run
) -> None:
    parent = make_checkpoint(run, name="step-20", step=20, size_bytes=3 * 1024**2)
    branch = make_run(alice, run.base_model, "branch", parent=parent)
    make_checkpoint(branch, name="final", kind=TRAINING)
    page = read(browser, "/checkpoints/")
    assert "3.0 MiB" in page
    assert parent.digest[:10] in page
    assert page.count(f"/checkpoints/{parent.pk}/") == 2
    assert "base model" in page


def test_checkpoints_made_for_samples_alone_are_hidden_until_asked_for(
    browser: Client, run: Run
) -> None:
    make_checkpoint(run, name="kept")
    make_checkpoint(run, name="passing", is_ephemeral=True)
    assert "/checkpoints/" in read(browser, "/checkpoints/")
    assert ">passing</a>" not in read(browser, "/checkpoints/")
    assert ">passing</a>" in read(browser, "/checkpoints/?passing=1")


def test_the_list_filters_by_run_and_kind(alice: Actor, browser: Client, run: Run) -> None:
    other = make_run(alice, run.base_model, "other")
    make_checkpoint(run, name="mine", kind=TRAINING)
    make_checkpoint(other, name="theirs")
    page = read(browser, f"/checkpoints/?run={run.pk}")
    assert ">mine</a>" in page
    assert ">theirs</a>" not in page
    assert ">mine</a>" not in read(browser, "/checkpoints/?kind=sampler")
    assert "No checkpoint is like that" in read(browser, "/checkpoints/?q=nothing")


def test_the_list_takes_the_same_queries_for_one_checkpoint_and_for_six(
    alice: Actor, browser: Client, run: Run
) -> None:
    first = make_checkpoint(run, name="first")
    once = count_queries(browser, "/checkpoints/")
    for number in range(5):
        branch = make_run(alice, run.base_model, f"branch {number}", parent=first)
        checkpoint = make_checkpoint(branch, name=f"more {number}")
        Deployment.objects.create(
            project=alice.project,
            name=f"d{number}",
            base_model=run.base_model,
            checkpoint=checkpoint,
        )
    assert count_queries(browser, "/checkpoints/") == once


def test_the_proof_is_said_in_words(browser: Client, run: Run) -> None:
    checkpoint = make_checkpoint(run)
    url = f"/checkpoints/{checkpoint.pk}/"
    assert "Not loaded by a sampling server yet" in read(browser, url)
    HotLoad.objects.create(
        checkpoint=checkpoint,
        server="s/1",
        adapter_name="a-1",
        status=HotLoad.Status.READY,
        load_milliseconds=41.0,
        probe_milliseconds=12.0,
        server_logprobs=[-1.0, -2.0],
        max_difference=2.1e-6,
        tolerance=1e-3,
    )
    page = read(browser, url)
    assert "Trainer and server agree on 2 tokens to 2.1e-6 nats; 1e-3 is allowed." in page
    assert "Loaded in 41 ms" in page
    assert run.base_model.digest[:16] in page


def test_a_page_offers_what_can_be_done_with_its_kind(browser: Client, run: Run) -> None:
    training = make_checkpoint(run, name="t", kind=TRAINING, has_optimizer=True)
    sampler = make_checkpoint(run, name="s")
    page = read(browser, f"/checkpoints/{training.pk}/")
    assert f"/runs/new/?parent={training.pk}&amp;with_optimizer=1" in page
    assert f"/deployments/new/?checkpoint={training.pk}" in page
    assert f"/playground/?left={training.pk}" in page
    assert f"/evals/new/?checkpoint={training.pk}" in page
    assert "with_optimizer" not in read(browser, f"/checkpoints/{sampler.pk}/")


def test_keep_takes_the_expiry_away(browser: Client, run: Run) -> None:
    checkpoint = make_checkpoint(run, expires_at=now() + timedelta(hours=5))
    assert "expires in" in read(browser, f"/checkpoints/{checkpoint.pk}/")
    browser.post(f"/checkpoints/{checkpoint.pk}/keep/")
    checkpoint.refresh_from_db()
    assert checkpoint.expires_at is None


def test_delete_asks_first_and_leaves_the_place_in_the_lineage(browser: Client, run: Run) -> None:
    checkpoint = make_checkpoint(run)
    assert "data-confirm" in read(browser, f"/checkpoints/{checkpoint.pk}/")
    browser.post(f"/checkpoints/{checkpoint.pk}/delete/")
    assert ">step-10</a>" not in read(browser, "/checkpoints/?q=step")
    page = read(browser, f"/checkpoints/{checkpoint.pk}/")
    assert "Its files were deleted" in page
    assert "download" not in page.partition("The same over REST")[0].partition("<main")[2]


def test_a_served_checkpoint_is_not_deleted(alice: Actor, browser: Client, run: Run) -> None:
    checkpoint = make_checkpoint(run)
    Deployment.objects.create(
        project=alice.project, name="d", base_model=run.base_model, checkpoint=checkpoint
    )
    answer = browser.post(f"/checkpoints/{checkpoint.pk}/delete/")
    assert "in use by a deployment" in answer.content.decode()
    checkpoint.refresh_from_db()
    assert checkpoint.deleted_at is None


def test_another_projects_checkpoint_does_not_exist(run: Run) -> None:
    checkpoint = make_checkpoint(run)
    stranger = sign_in(make_actor("charlie"))
    url = f"/checkpoints/{checkpoint.pk}/"
    assert [stranger.get(url).status_code, stranger.get(f"{url}download/").status_code] == [404] * 2
    assert [stranger.post(f"{url}{verb}/").status_code for verb in ("keep", "delete")] == [404] * 2


def test_a_viewer_neither_keeps_nor_deletes(alice: Actor, run: Run) -> None:
    checkpoint = make_checkpoint(run, expires_at=now() + timedelta(hours=5))
    viewer = sign_in(make_viewer(alice))
    page = read(viewer, f"/checkpoints/{checkpoint.pk}/")
    assert "Delete the files" not in page
    for verb in ("keep", "delete"):
        answer = viewer.post(f"/checkpoints/{checkpoint.pk}/{verb}/")
        assert "viewer" in answer.content.decode()
    checkpoint.refresh_from_db()
    assert checkpoint.expires_at is not None
    assert checkpoint.deleted_at is None


def test_a_download_is_a_tar_of_the_peft_folder_without_the_optimizer(
    browser: Client, run: Run, tmp_path: Path, settings: Settings
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoint = make_checkpoint(run, path="checkpoints/r/x", name="final/v1")
    weights = bytes(range(256)) * (CHUNK_BYTES // 128)
    make_files(
        checkpoint,
        tmp_path,
        adapter_config__json=b"{}",
        adapter_model__safetensors=weights,
        optimizer__safetensors=b"large",
        manifest__json=b'{"digest": 1}',
    )
    answer = browser.get(f"/checkpoints/{checkpoint.pk}/download/")
    body = b"".join(answer)
    assert int(answer.headers["Content-Length"]) == len(body)
    folder = f"{checkpoint.pk}-final-v1"
    assert f'filename="{folder}.tar"' in answer.headers["Content-Disposition"]
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"]
        assert archive.getnames() == [f"{folder}/{name}" for name in names]
        stored = archive.extractfile(f"{folder}/adapter_model.safetensors")
        card = archive.extractfile(f"{folder}/README.md")
        assert stored is not None
        assert card is not None
        assert stored.read() == weights
        assert "base_model: tiny/chat" in card.read().decode()


def test_a_download_streams_in_pieces_under_asgi(
    run: Run, tmp_path: Path, settings: Settings
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoint = make_checkpoint(run, path="checkpoints/r/x")
    make_files(checkpoint, tmp_path, adapter_model__safetensors=b"x" * (3 * CHUNK_BYTES))
    response = stream_archive(checkpoint)

    async def read_sizes() -> list[int]:
        return [len(chunk) async for chunk in response]

    sizes = async_to_sync(read_sizes)()
    assert max(sizes) < PIECE_BYTES + CHUNK_BYTES  # small parts, and one of the file
    assert len(sizes) >= 3
    assert sum(sizes) == int(response.headers["Content-Length"])


def test_a_download_of_deleted_files_says_so(browser: Client, run: Run) -> None:
    checkpoint = make_checkpoint(run, deleted_at=now())
    answer = browser.get(f"/checkpoints/{checkpoint.pk}/download/")
    assert answer.status_code == 400
    assert "no longer on this server" in answer.content.decode()
