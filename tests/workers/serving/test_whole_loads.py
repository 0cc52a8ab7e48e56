"""Checkpoints of all weights are served as models of their own, each with its proof."""

import errno
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.whole_folders import TINY
from tests.workers.serving.conftest import MODEL, TOKENS, WORKER, finish, open_sampler
from training import deltas
from webapp.accounts.models import Actor, Role
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.calls import submit_call
from webapp.deployments.models import Deployment, HotLoad, SamplingCall
from webapp.deployments.services import create_deployment
from workers import hotload, whole_folders
from workers.generation import App
from workers.hotload import HotLoads, LoadFailed
from workers.residents import Residents, Setup, TurnThread
from workers.vllm import SamplingServer

Status = HotLoad.Status


@pytest.fixture
def residents() -> Residents:
    return Residents(Setup(models={MODEL: TINY}))


@pytest.fixture
def transport(residents: Residents) -> Iterator[httpx.AsyncBaseTransport]:
    thread = TurnThread(residents, on_death=lambda: None)
    thread.start()
    yield httpx.ASGITransport(App(thread))
    thread.stop()


@pytest.fixture
def load(transport: httpx.AsyncBaseTransport, db: None) -> Callable[..., None]:
    def load(work: Callable[[HotLoads], Awaitable[None]], over: Any = None) -> None:
        async def run() -> None:
            async with SamplingServer("http://sampler", transport=over or transport) as server:
                await work(HotLoads(server, f"{WORKER}/1"))

        async_to_sync(run)()

    return load


async def nothing(_: HotLoad) -> None:
    pass


def list_restored(home: Path) -> list[str]:
    return sorted(folder.name for folder in (home / "restored").glob("*/*"))


def test_a_base_is_served_from_its_own_folder_and_proven(
    load: Callable[..., None], base: Checkpoint, home: Path, residents: Residents
) -> None:
    async def work(loads: HotLoads) -> None:
        await loads.use(base, nothing)

    load(work)
    row = HotLoad.objects.get()
    assert (row.status, row.digest) == (Status.READY, base.digest)
    assert row.server_logprobs == pytest.approx(base.probe["logprobs"], abs=1e-4)
    assert residents.models[row.adapter_name] == home / base.path
    assert list_restored(home) == []


def test_a_delta_is_restored_served_proven_and_its_restored_folder_goes_with_it(
    load: Callable[..., None],
    delta: Checkpoint,
    base: Checkpoint,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotload, "MAX_WHOLE", 1)
    restored: list[list[str]] = []

    async def work(loads: HotLoads) -> None:
        for checkpoint in (delta, base, delta):
            await loads.use(checkpoint, nothing)
            restored.append(list_restored(home))

    load(work)
    loads = list(HotLoad.objects.order_by("pk"))
    assert [each.status for each in loads] == [Status.LOST, Status.LOST, Status.READY]
    assert restored == [[loads[0].adapter_name], [], [loads[2].adapter_name]]
    assert loads[0].adapter_name != loads[2].adapter_name
    assert loads[0].server_logprobs != pytest.approx(loads[1].server_logprobs, abs=1e-2)


def test_a_delta_of_a_delta_is_restored_too(
    load: Callable[..., None], save_full: Callable[..., Checkpoint], delta: Checkpoint
) -> None:
    second = save_full("second", delta, 2)

    async def work(loads: HotLoads) -> None:
        await loads.use(second, nothing)

    load(work)
    assert HotLoad.objects.get().status == Status.READY


def test_a_delta_of_what_is_loaded_is_restored_by_itself_and_by_the_whole_chain_where_that_fails(
    load: Callable[..., None],
    save_full: Callable[..., Checkpoint],
    delta: Checkpoint,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second, third = save_full("second", delta, 2), save_full("third", delta, 3)
    chains: list[str] = []

    def restore(folder: Path, target: Path) -> None:
        chains.append(folder.name)
        deltas.restore_folder(folder, target)

    monkeypatch.setattr(whole_folders, "restore_folder", restore)

    async def work(loads: HotLoads) -> None:
        first, _ = await loads.use(delta, nothing)
        await loads.use(second, nothing)
        file = home / "restored" / WORKER / first.adapter_name / "model.safetensors"
        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        file.unlink()  # the server may have it mapped
        file.write_bytes(changed)
        await loads.use(third, nothing)

    load(work)
    assert chains == ["delta", "third"]
    assert set(HotLoad.objects.values_list("status", flat=True)) == {Status.READY}


def test_changed_files_are_not_served(
    load: Callable[..., None], base: Checkpoint, home: Path
) -> None:
    (home / base.path / "config.json").write_text("{}")

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match=r"config\.json does not have the digest"):
            await loads.use(base, nothing)

    load(work)
    assert HotLoad.objects.get().status == Status.FAILED


def test_a_disk_without_room_for_a_restored_delta_is_said_and_nothing_is_left_on_it(
    load: Callable[..., None], delta: Checkpoint, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(_folder: Path, target: Path) -> None:
        (target / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_folders, "restore_folder", fill_disk)

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="could not be restored: No space left"):
            await loads.use(delta, nothing)

    load(work)
    assert HotLoad.objects.get().status == Status.FAILED
    assert list_restored(home) == []


def test_weights_of_another_checkpoint_are_not_served_as_this_one(
    load: Callable[..., None], base: Checkpoint, delta: Checkpoint, home: Path
) -> None:
    Checkpoint.objects.filter(pk=delta.pk).update(digest=base.digest)
    delta.refresh_from_db()

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="changed on disk"):
            await loads.use(delta, nothing)

    load(work)
    assert list_restored(home) == []


def test_a_server_of_one_model_refuses_in_words_and_the_deployment_says_them(
    base: Checkpoint, home: Path
) -> None:
    """As vLLM answers what it has no route for."""
    vllm = httpx.MockTransport(lambda _: httpx.Response(404, json={"detail": "Not Found"}))
    actor = Actor(user=base.project.members.get(), project=base.project, role=Role.OWNER)
    deployment = create_deployment(actor=actor, name="all", checkpoint=base)

    async def run() -> None:
        async with open_sampler(vllm, engine="external") as sampler:
            await finish(sampler)

    async_to_sync(run)()
    deployment.refresh_from_db()
    assert deployment.status == Deployment.Status.FAILED
    assert "checkpoints of all weights are served by the built-in server" in deployment.error


def test_calls_of_a_delta_a_base_and_the_base_model_are_each_answered_by_their_own(
    base: Checkpoint, delta: Checkpoint, work: Callable[..., None], residents: Residents
) -> None:
    calls = [ask(base, checkpoint) for checkpoint in (None, base, delta)]
    work()
    answers = [read_answer(call) for call in calls]
    texts = [answer["sequences"][0]["tokens"] for answer in answers]
    assert texts[0] == texts[1] != texts[2]
    digests = [answer.get("digest") for answer in answers]
    assert digests == [base.base_model.digest, base.digest, delta.digest]
    assert len(residents.residents) == 2


def read_answer(call: SamplingCall) -> Any:
    call.refresh_from_db()
    return json.loads(bytes(call.result or b""))


def ask(like: Checkpoint, checkpoint: Checkpoint | None) -> SamplingCall:
    return submit_call(
        project=like.project,
        purpose=SamplingCall.Purpose.REST,
        base_model=like.base_model,
        checkpoint=checkpoint,
        payload={
            "prompt": list(TOKENS),
            "num_samples": 1,
            "params": {"max_tokens": 6, "temperature": 0.0, "seed": 1},
            "prompt_logprobs": False,
        },
    )
