"""Files that are damaged, half there, gone or of another model: said in words, and never served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.utils.timezone import now
from safetensors.torch import load_file, save_file

from tests.workers.serving.conftest import WORKER, Saved
from training.manifest import MANIFEST_FILE
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import loads, services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad
from workers.hotload import HotLoads, LoadFailed
from workers.proof import ADAPTER_FILE
from workers.vllm import ModelMissing, SamplingServer, ServerLost

Status = HotLoad.Status


@pytest.fixture
def adapter(save: Callable[..., Checkpoint], saved: Saved, tmp_path: Path, settings: Any) -> Any:
    """A copy that a test may damage."""
    shutil.copytree(saved.home / "second", tmp_path / "copy")
    shutil.copytree(saved.home / "first", tmp_path / "first")
    settings.HONE_HOME = tmp_path
    return save("second", path="copy")


@pytest.fixture
def folder(adapter: Checkpoint, tmp_path: Path) -> Path:
    return tmp_path / "copy"


@pytest.fixture
def load(transport: httpx.AsyncBaseTransport) -> Callable[..., str]:
    """Why a checkpoint is not served."""

    def load(checkpoint: Checkpoint) -> str:
        async def run() -> None:
            async with SamplingServer("http://sampler", transport=transport) as server:
                await HotLoads(server, f"{WORKER}/1").use(checkpoint, nothing)

        with pytest.raises(LoadFailed) as failed:
            async_to_sync(run)()
        assert HotLoad.objects.get().status == Status.FAILED
        return str(failed.value)

    return load


async def nothing(_: HotLoad) -> None:
    pass


def change_manifest(folder: Path, **fields: Any) -> None:
    file = folder / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_corrupted_adapter_names_the_first_tensor_that_was_changed(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    tensors = load_file(folder / ADAPTER_FILE)
    changed = sorted(tensors)[3]
    tensors[changed] = tensors[changed] + 1e-3
    save_file(tensors, folder / ADAPTER_FILE)
    error = load(adapter)
    assert f"the tensor {changed} of {ADAPTER_FILE} is not as manifest.json says" in error
    assert adapter.digest[:12] in error


def test_a_tensor_that_is_missing_is_named(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    tensors = load_file(folder / ADAPTER_FILE)
    missing = sorted(tensors)[2]
    del tensors[missing]
    save_file(tensors, folder / ADAPTER_FILE)
    assert f"the tensor {missing}, which is missing," in load(adapter)


def test_an_adapter_without_its_manifest_was_not_written_to_its_end(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    (folder / MANIFEST_FILE).unlink()
    assert "is no complete checkpoint: manifest.json is missing" in load(adapter)


def test_an_adapter_file_that_was_cut_off_cannot_be_read(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    file = folder / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is damaged: the tensor" in load(adapter)
    file.write_bytes(file.read_bytes()[:100])
    HotLoad.objects.all().delete()
    assert "cannot be read" in load(adapter)
    file.unlink()
    HotLoad.objects.all().delete()
    assert "adapter_model.safetensors is missing" in load(adapter)


def test_an_adapter_of_another_base_model_is_refused_before_it_is_loaded(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    change_manifest(folder, base_digest="0" * 64)
    assert "was trained on another base model than the one in tiny-chatml-1m" in load(adapter)
    assert HotLoad.objects.get().load_milliseconds is None


def test_an_adapter_of_before_tensors_were_told_apart_is_served_and_its_damage_said(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    change_manifest(folder, tensors={})
    tensors = load_file(folder / ADAPTER_FILE)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, folder / ADAPTER_FILE)
    assert f"a tensor of {ADAPTER_FILE} is not as manifest.json says" in load(adapter)


def test_a_folder_that_is_gone_is_said_to_be(
    load: Callable[[Checkpoint], str], adapter: Checkpoint, folder: Path
) -> None:
    shutil.rmtree(folder)
    assert load(adapter) == "The files of second are not there any more."


def test_a_checkpoint_that_is_deleted_while_it_is_loaded_is_not_served(
    load: Callable[[Checkpoint], str],
    adapter: Checkpoint,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_load = loads.begin_load

    def delete_then(*args: Any, **columns: Any) -> HotLoad:
        load = begin_load(*args, **columns)
        Checkpoint.objects.filter(pk=adapter.pk).update(deleted_at=now())
        shutil.rmtree(folder)
        return load

    monkeypatch.setattr(loads, "begin_load", delete_then)
    assert load(adapter) == "The checkpoint second was deleted."


def test_a_delta_whose_base_was_deleted_says_what_it_needs(
    load: Callable[[Checkpoint], str], delta: Checkpoint, base: Checkpoint, home: Path
) -> None:
    shutil.rmtree(home / base.path)
    assert "delta holds only what differs from base, which is not there any more" in load(delta)
    assert list((home / "restored").glob("*/*")) == []


def test_a_delta_whose_base_lacks_a_file_names_it(
    load: Callable[[Checkpoint], str], delta: Checkpoint, base: Checkpoint, home: Path
) -> None:
    (home / base.path / "model.safetensors").unlink()
    assert "base is damaged: model.safetensors is missing" in load(delta)


def test_a_delta_to_other_weights_than_lie_there_is_refused(
    load: Callable[[Checkpoint], str], delta: Checkpoint, home: Path
) -> None:
    change_manifest(home / delta.path, previous_digest="0" * 64)
    assert "is the difference to other weights than base has" in load(delta)


def test_a_deployment_serves_on_whatever_is_wrong_with_the_next_checkpoint(
    alice: Actor,
    save: Callable[..., Checkpoint],
    adapter: Checkpoint,
    folder: Path,
    work: Callable[..., None],
) -> None:
    first = save("first")
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=first)
    work()
    (folder / MANIFEST_FILE).unlink()
    change = services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=adapter)
    work()
    for each in (change, deployment):
        each.refresh_from_db()
    assert change.status == DeploymentChange.Status.FAILED
    assert "manifest.json is missing" in change.error
    assert (deployment.status, deployment.checkpoint) == (Deployment.Status.READY, first)
    assert HotLoad.objects.get(status=Status.READY).checkpoint == first


def test_a_server_that_forgets_what_it_has_just_loaded_is_lost_and_nobody_hears_of_a_404(
    transport: httpx.AsyncBaseTransport, checkpoint: Checkpoint
) -> None:
    async def forget(load: HotLoad) -> None:
        raise ModelMissing(f"The model {load.adapter_name} does not exist.")

    async def run() -> None:
        async with SamplingServer("http://sampler", transport=transport) as server:
            await HotLoads(server, f"{WORKER}/1").use(checkpoint, forget)

    with pytest.raises(ServerLost, match="it forgot first 3 times"):
        async_to_sync(run)()
    names = HotLoad.objects.values_list("adapter_name", flat=True)
    assert len(set(names)) == 3


def test_a_folder_that_the_server_does_not_find_is_its_refusal(
    checkpoint: Checkpoint,
) -> None:
    gone = httpx.MockTransport(
        lambda _: httpx.Response(404, json={"error": {"message": "No adapter found for x"}})
    )

    async def run() -> None:
        async with SamplingServer("http://sampler", transport=gone) as server:
            await HotLoads(server, f"{WORKER}/1").use(checkpoint, nothing)

    with pytest.raises(LoadFailed, match="refused it: No adapter found"):
        async_to_sync(run)()
