"""One start of a server that a deployment has for itself, and what a sampler does with it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.vllm_server import RealVllm
from tests.workers.serving.conftest import MODEL, TINY, TOKENS, start_replica
from tests.workers.serving.in_place.one_model import OneModel
from training.types import SampleRequest, SamplingParams
from webapp.accounts.models import Actor, Role
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, Replica
from workers.changes import Changes
from workers.generation import App
from workers.in_place import InPlaceLoads
from workers.residents import Residents, Setup, TurnThread
from workers.starts import Start
from workers.vllm import SamplingServer

Status = HotLoad.Status
Scene = Callable[[Start], Awaitable[None]]
Play = Callable[[Scene, OneModel | RealVllm], None]
SHORT = SampleRequest(prompt=TOKENS, params=SamplingParams(max_tokens=2, temperature=0.0))
LONG = replace(SHORT, params=SamplingParams(max_tokens=400, temperature=0.0, stop=()))


@pytest.fixture
def deployment(base: Checkpoint) -> Deployment:
    actor = Actor(user=base.project.members.get(), project=base.project, role=Role.OWNER)
    return services.create_deployment(actor=actor, name="whole", checkpoint=base)


@pytest.fixture
def change(deployment: Deployment) -> Callable[..., DeploymentChange]:
    def change(checkpoint: Checkpoint, transition: str = "") -> DeploymentChange:
        owner = deployment.project.members.get()
        actor = Actor(user=owner, project=deployment.project, role=Role.OWNER)
        return services.change_checkpoint(
            actor=actor, deployment=deployment, checkpoint=checkpoint, transition=transition
        )

    return change


@pytest.fixture
def one_model() -> Iterator[OneModel]:
    thread = TurnThread(Residents(Setup(models={MODEL: TINY}, max_models=4)), lambda: None)
    thread.start()
    yield OneModel(httpx.ASGITransport(App(thread)))
    thread.stop()


@pytest.fixture
def play(deployment: Deployment) -> Play:
    """With one start of a server that the deployment has for itself."""
    replica = start_replica(
        name="vllm-own",
        engine=Replica.Engine.VLLM,
        base_model=deployment.base_model,
        deployment=deployment,
    )

    def play(scene: Scene, server: OneModel | RealVllm) -> None:
        async def run() -> None:
            async with connect(server) as client:
                loads = InPlaceLoads(client, "vllm-own/1", replica=replica)
                await loads.adopt()
                await scene(Start(replica=replica, server=client, loads=loads))

        async_to_sync(run)()

    return play


def connect(server: OneModel | RealVllm) -> SamplingServer:
    if isinstance(server, OneModel):
        return SamplingServer("http://vllm", transport=server)
    return server.connect()


async def serve(start: Start, *changes: DeploymentChange) -> None:
    """As a sampler does it, one after the other."""

    for _ in changes:
        works = Changes(lambda _: [start], do)
        await works.begin()
        await asyncio.gather(*works.tasks.values())


async def do(_: DeploymentChange, work: Awaitable[None]) -> None:
    await work


async def answer(start: Start, checkpoint: Checkpoint) -> tuple[HotLoad, Any]:
    return await start.loads.use(
        checkpoint, lambda load: start.server.generate(start.loads.name_model(load), SHORT)
    )


def list_restored(home: Path) -> list[str]:
    return sorted(folder.name for folder in (home / "restored").glob("*/*"))
