"""A trained adapter of the tiny model, its rows, and the built-in server in this process."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from asgiref.sync import async_to_sync

from tests.whole_folders import restore, write_base, write_delta
from training.engine.core import Engine
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import LoraSpec, Probe, SampleRequest, SamplingParams, SavedWeights
from webapp.accounts.models import Actor, Membership, Project, Role, User
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import replicas
from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run
from workers.generation import App
from workers.hotload import in_database
from workers.residents import Residents, Setup, TurnThread
from workers.sampler import Sampler
from workers.vllm import SamplingServer

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
MODEL = "tiny/chat"
WORKER = "sampler-test"
REPLICA = "built-in"

Work = Callable[[Sampler], Awaitable[None]]
TOKENS = (5, 9, 400, 33, 700, 12)  # of the probes of whole checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Two adapters on disk, as a trainer saved them."""

    home: Path
    first: SavedWeights
    second: SavedWeights


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    home = tmp_path_factory.mktemp("home")
    engine = Engine.load(TINY)
    weights = []
    for index, name in enumerate(("first", "second")):
        engine.create_adapter(name, LoraSpec(rank=4, seed=index))
        stir(engine, name, seed=index)
        weights.append(engine.save_weights(name, home / name, optimizer=False))
    return Saved(home=home, first=weights[0], second=weights[1])


def stir(engine: Engine, run: str, *, seed: int) -> None:
    """B starts at zero, where every adapter is the base model."""
    generator = torch.Generator().manual_seed(seed)
    for pair in engine.adapters.by_run[run].pairs.values():
        pair.b.detach().copy_(0.1 * torch.randn(pair.b.shape, generator=generator))


@pytest.fixture
def alice(db: None) -> Actor:
    user = User.objects.create_user(username="alice")
    project = Project.objects.create(name="Alice's project")
    Membership.objects.create(project=project, user=user, role=Role.OWNER)
    return Actor(user=user, project=project, role=Role.OWNER)


@pytest.fixture
def base_model(db: None) -> BaseModel:
    model = BaseModel.objects.create(
        path=str(TINY), context_tokens=512, vocab_size=1024, digest="base"
    )
    BaseModelName.objects.create(base_model=model, name=MODEL)
    return model


@pytest.fixture
def run(alice: Actor, base_model: BaseModel) -> Run:
    return Run.objects.create(
        project=alice.project, name="first", origin=Origin.BROWSER, base_model=base_model, rank=4
    )


@pytest.fixture
def save(run: Run, saved: Saved, settings: Any) -> Callable[..., Checkpoint]:
    """A checkpoint's row, of the first or the second adapter."""
    settings.HONE_HOME = saved.home

    def save(name: str = "first", **columns: Any) -> Checkpoint:
        weights = saved.first if name == "first" else saved.second
        defaults = {
            "project": run.project,
            "run": run,
            "base_model": run.base_model,
            "name": name,
            "kind": Checkpoint.Kind.SAMPLER,
            "step": 10,
            "seq": 20,
            "path": name,
            "digest": weights.digest,
            "size_bytes": weights.size_bytes,
            "rank": 4,
            "probe": {
                "tokens": list(weights.probe.tokens),
                "logprobs": list(weights.probe.logprobs),
            },
        }
        return Checkpoint.objects.create(**defaults | columns)

    return save


@pytest.fixture
def checkpoint(save: Callable[..., Checkpoint]) -> Checkpoint:
    return save()


@pytest.fixture(scope="session")
def turns() -> Iterator[TurnThread]:
    thread = TurnThread(Residents(Setup(models={MODEL: TINY})), on_death=lambda: None)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def transport(turns: TurnThread) -> httpx.AsyncBaseTransport:
    """Tests put another one in its place to break what the server says."""
    assert turns.is_alive  # or nothing that is asked would ever be answered
    return httpx.ASGITransport(App(turns))


def start_replica(start: str = "1", name: str = REPLICA, **wanted: Any) -> Replica:
    """As the supervisor does: what an earlier start of it held is lost."""
    found = Replica.objects.filter(name=name).first()
    if found is None or found.start != start:
        if found is not None:
            replicas.mark_lost(name, start=found.start, error="It ended.")
        defaults = {"engine": Replica.Engine.BUILT_IN}
        spec = Wanted(name=name, **defaults | wanted)
        replicas.begin_start(spec, start=start, url=f"http://{name}", pid=None)
        replicas.mark_ready(name, start=start)
    return Replica.objects.get(name=name)


@asynccontextmanager
async def open_sampler(
    transport: httpx.AsyncBaseTransport, start: str = "1", **wanted: Any
) -> AsyncIterator[Sampler]:
    """A sampler of one replica."""
    await in_database(start_replica, start, **wanted)
    sampler = Sampler(
        worker=WORKER, connect=lambda url: SamplingServer(url, transport=transport), leads=True
    )
    await sampler.begin()
    yield sampler
    await sampler.stop()


async def finish(sampler: Sampler) -> None:
    """Turns until nothing waits and nothing is on its way."""
    while await sampler.run_once() or sampler.tasks or sampler.proving or sampler.changes.tasks:
        await sampler.wait()


@pytest.fixture
def work(transport: httpx.AsyncBaseTransport) -> Callable[..., None]:
    """Let a sampler do everything that waits. `then` sees it before it ends."""

    def work(then: Work | None = None, *, start: str = "1", over: Any = None) -> None:
        async def run() -> None:
            async with open_sampler(over or transport, start) as sampler:
                await finish(sampler)
                if then is not None:
                    await then(sampler)

        async_to_sync(run)()

    return work


def make_probe(folder: Path) -> Probe:
    generator = Generator.load(folder)
    params = SamplingParams(max_tokens=1)
    generator.submit(SampleRequest(prompt=TOKENS, params=params, prompt_logprobs=True))
    while not (finished := generator.step()):
        pass
    assert not isinstance(finished[0].result, InvalidInput)
    logprobs = tuple(value for value in finished[0].result.prompt_logprobs or () if value)
    return Probe(tokens=TOKENS, logprobs=logprobs)


@pytest.fixture
def home(save: Callable[..., Checkpoint], tmp_path: Path, settings: Any) -> Path:
    """Another one than that of the adapters, whose fixture has set its own by now."""
    settings.HONE_HOME = tmp_path
    return tmp_path


@pytest.fixture
def save_full(save: Callable[..., Checkpoint], home: Path) -> Callable[..., Checkpoint]:
    """A base, and deltas of it, each of other weights."""

    def save_full(name: str, previous: Checkpoint | None = None, seed: int = 0) -> Checkpoint:
        folder = home / "checkpoints" / name
        if previous is None:
            manifest = write_base(folder)
        else:
            manifest = write_delta(folder, home / previous.path, seed=seed)
        probe = make_probe(restore(folder, home / "probed" / name))
        return save(
            name=name,
            rank=0,
            type=manifest.type,
            ratio=manifest.ratio,
            previous=previous,
            digest=manifest.digest,
            path=f"checkpoints/{name}",
            probe={"tokens": list(probe.tokens), "logprobs": list(probe.logprobs)},
        )

    return save_full


@pytest.fixture
def base(save_full: Callable[..., Checkpoint]) -> Checkpoint:
    return save_full("base")


@pytest.fixture
def delta(save_full: Callable[..., Checkpoint], base: Checkpoint) -> Checkpoint:
    return save_full("delta", base, 1)
