"""Models in memory, loaded on first use, and the one thread that takes their turns."""

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from training.engine.calls import Listener
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest
from workers.room import count_free_bytes, count_model_bytes


class UnknownModel(LookupError):  # noqa: N818 - an answer (404), not a fault of the server
    """No model and no adapter has this name, here and now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Which models a server offers, and how much it may hold at once."""

    models: Mapping[str, Path]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    max_models: int = 2
    count_free: Callable[[str], int] = count_free_bytes  # of the device, in bytes
    max_adapters: int = 64  # of one base model; others are read again when they are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlace:
    """Where an adapter lies. Its weights may have left memory: the name still answers."""

    base: str
    folder: Path


Result = SampleOutput | InvalidInput | UnknownModel
Opened = InvalidInput | UnknownModel | None


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request and what to call with its result, once, unless it is cancelled before."""

    model: str
    request: SampleRequest
    deliver: Callable[[Result], None]
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    listener: Listener | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Opening:
    """A whole model to read into memory, and what to call then: with None, or with why not."""

    model: str
    deliver: Callable[[Opened], None]


@dataclass(slots=True, kw_only=True)
class Resident:
    """A model in memory, with the jobs it is at."""

    generator: Generator
    jobs: dict[int, Job] = field(default_factory=dict)


class Residents:
    """Everything here is called by one thread at a time."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.models: dict[str, Path] = dict(setup.models)  # and whole ones that were loaded since
        self.residents: dict[str, Resident] = {}  # the longest unused first
        self.adapters: dict[str, AdapterPlace] = {}  # the longest unused first
        self.waiting: deque[Job | Opening] = deque()

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not any(each.jobs for each in self.residents.values())

    def list_models(self) -> list[dict[str, str | None]]:
        bases: list[dict[str, str | None]] = [
            {"id": name, "object": "model", "root": str(path), "parent": None}
            for name, path in self.models.items()
        ]
        adapters: list[dict[str, str | None]] = [
            {"id": name, "object": "model", "root": str(place.folder), "parent": place.base}
            for name, place in self.adapters.items()
        ]
        return bases + adapters

    def load_adapter(self, name: str, folder: Path, base: str | None) -> None:
        """Reads the folder now, so that a bad one is refused now. The same again changes nothing.

        The base model is loaded even where that makes one resident too many for a moment.
        """
        if name in self.models:
            raise InvalidInput(f"{name} is the name of a model: give the adapter its own")
        place = AdapterPlace(base=self._find_base(folder, base), folder=folder)
        if self.adapters.get(name, place) != place:
            raise InvalidInput(f"adapter {name} is already loaded: give each version its own name")
        resident = self.residents.get(place.base) or self._load(place.base)
        self._ensure_adapter(resident.generator, name, place)
        self.adapters[name] = place

    def unload_adapter(self, name: str) -> None:
        place = self.adapters.pop(name, None)
        if place is None:
            raise UnknownModel(f"adapter {name} is not loaded")
        resident = self.residents.get(place.base)
        if resident and name in resident.generator.loaded:
            resident.generator.unload_adapter(name)

    def load_model(self, opening: Opening, folder: Path) -> None:
        """A whole model under a name of its own. It is read when there is room for it.

        What has left memory since is read again when it is asked for: its folder must stay.
        """
        name = opening.model
        if not (folder / "config.json").is_file():
            raise InvalidInput(f"{folder} is not a model: config.json is missing")
        if name in self.adapters or self.models.get(name, folder) != folder:
            raise InvalidInput(f"model {name} is already loaded: give each version its own name")
        self.models[name] = folder
        self.waiting.append(opening)

    def unload_model(self, name: str) -> None:
        """Requests that run have their model to their end; new ones do not find it any more."""
        if name not in self.models or name in self.setup.models:
            raise UnknownModel(f"model {name} is not loaded")
        del self.models[name]
        self._drop_unloaded()

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def cancel(self, job: Job) -> None:
        """The job's result is not delivered any more."""
        if job in self.waiting:
            self.waiting.remove(job)
        for resident in self.residents.values():
            for ticket in [ticket for ticket, each in resident.jobs.items() if each is job]:
                del resident.jobs[ticket]
                resident.generator.cancel(ticket)

    def take_turn(self) -> None:
        """Start what can start, and one step of every model that has work."""
        self._start_jobs()
        for resident in self.residents.values():
            for finished in resident.generator.step():
                resident.jobs.pop(finished.ticket).deliver(finished.result)
        self._drop_unloaded()

    def _drop_unloaded(self) -> None:
        gone = self.residents.keys() - self.models.keys()
        for name in [name for name in gone if not self.residents[name].jobs]:
            del self.residents[name]

    def _start_jobs(self) -> None:
        # In order: a job that waits for room holds back later ones, so that a busy model drains.
        while self.waiting:
            job = self.waiting[0]
            held = set(self.residents)
            try:
                is_begun = self._open_whole(job) if isinstance(job, Opening) else self._start(job)
                if not is_begun:
                    return
            except (InvalidInput, UnknownModel) as error:
                job.deliver(error)
                if isinstance(job, Opening):
                    self.models.pop(job.model, None)
            self.waiting.popleft()
            self._bring_forward(self.residents.keys() - held)

    def _bring_forward(self, loaded: Set[str]) -> None:
        """What waits for a model that was read just now is next: it need not be read once more."""
        if loaded:
            self.waiting = deque(
                sorted(self.waiting, key=lambda each: self._find_model(each) not in loaded)
            )

    def _find_model(self, job: Job | Opening) -> str:
        place = self.adapters.get(job.model)
        return place.base if place else job.model

    def _open_whole(self, opening: Opening) -> bool:
        """False: every place for a model is busy."""
        if opening.model not in self.models:
            raise InvalidInput(f"model {opening.model} was unloaded while it waited for room")
        if self._open(opening.model) is None:
            return False
        opening.deliver(None)
        return True

    def _start(self, job: Job) -> bool:
        """False: every place for a model is busy."""
        place, base = self.adapters.get(job.model), self._find_model(job)
        if base not in self.models:
            raise UnknownModel(f"the model {job.model} does not exist here")
        resident = self._open(base)
        if resident is None:
            return False
        if place:
            self._ensure_adapter(resident.generator, job.model, place)
        ticket = resident.generator.submit(
            job.request,
            adapter=job.model if place else None,
            also_stop=job.stop_ids,
            ignore_end=job.ignore_eos,
            listener=job.listener,
        )
        resident.jobs[ticket] = job
        return True

    def _open(self, base: str) -> Resident | None:
        if base in self.residents:
            self.residents[base] = self.residents.pop(base)
            return self.residents[base]
        while not self._has_room(base):
            idle = next((name for name, each in self.residents.items() if not each.jobs), None)
            if idle is None:
                return None
            del self.residents[idle]
        return self._load(base)

    def _has_room(self, base: str) -> bool:
        """Where nothing is held there is always room: what then does not fit is said by `_load`."""
        if not self.residents:
            return True
        fits = self._count_bytes(base) <= self.setup.count_free(self.setup.device)
        return fits and len(self.residents) < self.setup.max_models

    def _count_bytes(self, base: str) -> int:
        try:
            return count_model_bytes(self.models[base], self.setup.dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"the model {base} cannot be read: {error}") from None

    def _load(self, base: str) -> Resident:
        path, setup = self.models[base], self.setup
        if not (path / "config.json").is_file():
            raise UnknownModel(f"the model {base} is not at {path} any more")
        try:
            generator = Generator.load(path, device=setup.device, dtype=setup.dtype)
        except torch.OutOfMemoryError:
            raise InvalidInput(
                f"the model {base} takes {self._count_bytes(base) / 2**30:.1f} GiB, more than the"
                " sampling server's device has left"
            ) from None
        except (OSError, ValueError, SafetensorError) as error:
            raise InvalidInput(f"the model {base} cannot be read: {error}") from None
        self.residents[base] = Resident(generator=generator)
        return self.residents[base]

    def _ensure_adapter(self, generator: Generator, name: str, place: AdapterPlace) -> None:
        if name in self.adapters:
            self.adapters[name] = self.adapters.pop(name)
        if name in generator.loaded:
            return
        idle = [each for each in self.adapters if each in generator.loaded]
        for each in idle[: len(generator.loaded) - self.setup.max_adapters + 1]:
            generator.unload_adapter(each)
        generator.load_adapter(name, place.folder)

    def _find_base(self, folder: Path, base: str | None) -> str:
        """The one that was named, else the one that the adapter names, else the only one."""
        models = self.setup.models
        if base is None:
            named = read_base_name(folder)
            matches = [name for name, path in models.items() if named in (name, str(path))]
            base = (matches or list(models))[0] if matches or len(models) == 1 else named
        if base not in self.models:  # also one that was added since this server started
            raise InvalidInput(
                f"{folder} is an adapter of {base or 'no named model'}, which is not served here: "
                "say base_model"
            )
        return base


def read_base_name(folder: Path) -> str:
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{folder} is not an adapter: {error}") from None
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


class TurnThread:
    """Owns the residents while it runs; others hand it work through `post`."""

    def __init__(self, residents: Residents, on_death: Callable[[], None]) -> None:
        self.residents = residents
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.on_death = on_death
        self.thread = threading.Thread(target=self._run, name="turns", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.inbox.put(None)
        self.thread.join()

    def post(self, work: Callable[[], None]) -> None:
        self.inbox.put(work)

    def _run(self) -> None:
        is_stopped = False
        try:
            while not is_stopped:
                is_stopped = self._read_inbox()
                self.residents.take_turn()
        finally:
            # A bug in a step leaves requests that nobody answers: better no server than that one.
            if not is_stopped:
                self.on_death()

    def _read_inbox(self) -> bool:
        """Waits while there is nothing to do. True: stop."""
        while not self.inbox.empty() or self.residents.is_idle:
            work = self.inbox.get()
            if work is None:
                return True
            work()
        return False
