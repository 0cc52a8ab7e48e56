"""Keeps a sampling server busy: takes calls, many at once, and brings their answers home."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from webapp.deployments import abandoned, calls, loads, services
from webapp.deployments.models import Deployment, HotLoad, SamplingCall
from webapp.evals.services import settle_abandoned
from webapp.fleet.models import BaseModel
from webapp.fleet.services import beat_worker
from workers.answers import Answer, make_request, store_answer, store_failure
from workers.drawing import Drawing
from workers.hotload import HotLoads, LoadFailed, in_database
from workers.pieces import Publisher
from workers.vllm import ModelMissing, SamplingServer, ServerLost

logger = logging.getLogger(__name__)

IN_FLIGHT = 64  # what a server decodes together; more would only wait there instead of here
MAX_LOSSES = 3  # a call under which the server breaks so often is what breaks it
PAUSE_SECONDS = 1.0  # before a lost server is asked again


@dataclass(slots=True, eq=False, kw_only=True)
class Sampler:
    """The work of one start of one server. Everything that must last is in rows."""

    worker: str
    server: SamplingServer
    loads: HotLoads
    models: Container[str]  # names of the base models that the server was started with
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    publisher: Publisher = field(default_factory=Publisher)
    losses: Counter[int] = field(default_factory=Counter)  # calls that lost a server, by all starts
    limit: int = IN_FLIGHT
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    proving: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    tokenizers: dict[str, ChatTokenizer] = field(default_factory=dict)
    cold: Counter[str] = field(default_factory=Counter)  # calls in flight, by base model
    warm: set[str] = field(default_factory=set)  # base models that have answered once
    paused_until: float = 0.0
    is_outdated: bool = False  # something asks for a base model that only the next start has

    async def begin(self) -> None:
        """A new start of a server holds nothing of what earlier ones did."""
        await in_database(calls.requeue_calls, worker=self.worker)
        await in_database(lose_everything, self.worker, self.loads.start)
        await asyncio.to_thread(self.loads.forget_restored)

    async def run_once(self) -> bool:
        """Begin what waits and finds room. True: there may be more."""
        if time.monotonic() < self.paused_until:
            return False
        await in_database(abandoned.cancel_unwanted)
        for deployment in await in_database(services.list_loading):
            if deployment.pk not in self.proving and self.has(deployment.base_model):
                self.proving[deployment.pk] = asyncio.create_task(self.prove(deployment))
        room = self.limit - len(self.tasks)
        taken = await in_database(calls.claim_calls, worker=self.worker, limit=room)
        for call in taken:
            if self.has(call.base_model):
                self.tasks[call.pk] = asyncio.create_task(self.answer(call))
            else:
                await in_database(calls.requeue_call, call, worker=self.worker)
        return bool(taken) and len(taken) == room and not self.is_outdated

    def has(self, base_model: BaseModel) -> bool:
        """One that was offered a moment ago waits for the next start instead of failing."""
        is_there = base_model.name in self.models
        self.is_outdated = self.is_outdated or not is_there
        return is_there

    async def answer(self, call: SamplingCall) -> None:
        """Whatever goes wrong is this call's alone."""
        try:
            answer = await self.sample_from(call.base_model, call)
            await in_database(store_answer, call, answer, self.worker)
        except InvalidInput as error:
            await in_database(store_failure, call, str(error), "user", self.worker)
        except (LoadFailed, ModelMissing) as error:
            await in_database(store_failure, call, str(error), "server", self.worker)
        except ServerLost as error:
            await self.put_back(call, error)
        except Exception:
            logger.exception("call %s failed", call.pk)
            text = f"Internal error: the sampler's log has the details under call {call.pk}."
            await in_database(store_failure, call, text, "server", self.worker)
        finally:
            del self.tasks[call.pk]
            self.woken.set()

    async def sample_from(self, base_model: BaseModel, call: SamplingCall) -> Answer:
        """A server reads a base model when it is first asked for it, which may take a minute."""
        self.cold[base_model.name] += 1
        try:
            answer = await self.sample(call)
            self.warm.add(base_model.name)
            return answer
        finally:
            self.cold[base_model.name] -= 1

    async def sample(self, call: SamplingCall) -> Answer:
        tokenizer = await self.find_tokenizer(call.base_model)
        request = make_request(call, tokenizer)
        drawing = Drawing(call=call, request=request, tokenizer=tokenizer, tell=self.publisher.say)
        if call.checkpoint is None:
            output = await drawing.sample(self.server, call.base_model.name)
            return drawing.make_answer(output)
        if call.checkpoint.deleted_at is not None:
            raise InvalidInput(f"The checkpoint {call.checkpoint.name} was deleted.")
        load, output = await self.loads.use(
            call.checkpoint, lambda load: drawing.sample(self.server, load.adapter_name)
        )
        return drawing.make_answer(output, load)

    async def find_tokenizer(self, base_model: BaseModel) -> ChatTokenizer:
        if base_model.path not in self.tokenizers:
            self.tokenizers[base_model.path] = await asyncio.to_thread(
                ChatTokenizer.load, base_model.path
            )
        return self.tokenizers[base_model.path]

    async def put_back(self, call: SamplingCall, error: ServerLost) -> None:
        """The next start of the server answers it, unless it is what breaks servers."""
        self.paused_until = time.monotonic() + PAUSE_SECONDS
        self.losses[call.pk] += 1
        if self.losses[call.pk] < MAX_LOSSES:
            logger.warning("call %s waits again: %s", call.pk, error)
            await in_database(calls.requeue_call, call, worker=self.worker)
        else:
            text = f"The sampling server broke {MAX_LOSSES} times under this call: {error}"
            await in_database(store_failure, call, text, "server", self.worker)

    async def prove(self, deployment: Deployment) -> None:
        """A deployment is ready when its checkpoint is loaded and agrees."""
        try:
            load = await self.load_for(deployment)
            await in_database(services.mark_ready, deployment, load)
        except (LoadFailed, ModelMissing) as error:
            await in_database(services.mark_failed, deployment, str(error))
        except ServerLost:
            self.paused_until = time.monotonic() + PAUSE_SECONDS
        finally:
            del self.proving[deployment.pk]
            self.woken.set()

    async def load_for(self, deployment: Deployment) -> HotLoad | None:
        if deployment.checkpoint is None:
            return None
        load, _ = await self.loads.use(deployment.checkpoint, nothing_more)
        return load

    async def wait(self) -> None:
        """Until something that was begun has ended."""
        tasks = [*self.tasks.values(), *self.proving.values()]
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    async def beat(self) -> None:
        """Say that we live, keep our claims, drop what was cancelled, take over from the dead."""
        known = dict(self.tasks)  # others may begin while we ask
        held = await in_database(calls.renew_claims, worker=self.worker, pks=list(known))
        for pk in known.keys() - held:
            known[pk].cancel()
        await in_database(calls.requeue_expired)
        await in_database(settle_abandoned)
        holds: dict[str, object] = {
            "server": self.loads.start,
            "adapters": self.loads.names,
            "calls": len(self.tasks),
            "loading": sorted(set(+self.cold) - self.warm),
        }
        await in_database(beat_worker, name=self.worker, holds=holds)

    async def stop(self) -> None:
        tasks = [*self.tasks.values(), *self.proving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.loads.cancel()
        await asyncio.to_thread(self.loads.forget_restored)
        await in_database(calls.requeue_calls, worker=self.worker)


def lose_everything(worker: str, start: str = "") -> None:
    """What this sampler's servers held but `start`; deployments wait to be proven again."""
    loads.lose_loads(of=worker, but=start)
    services.reload_deployments()


async def nothing_more(_: HotLoad) -> None:
    """A deployment asks for the load alone."""
