"""Keeps sampling servers busy: takes calls, many at once, and brings their answers home."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from math import inf

from django.db.models import Q

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.types import SampleOutput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import abandoned, calls, loads, replicas, services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, Replica, SamplingCall
from webapp.evals.services import settle_abandoned
from webapp.fleet.models import BaseModel
from webapp.fleet.services import beat_worker
from webapp.fleet.workers import list_samplers
from workers.answers import Answer, make_request, store_answer, store_failure
from workers.changes import Changes
from workers.drawing import Drawing
from workers.hotload import LoadFailed, WeightsMoved, in_database, nothing_more
from workers.pieces import Publisher
from workers.starts import (
    IN_FLIGHT,
    Start,
    choose_for_checkpoint,
    choose_start,
    describe_answerable,
    lose,
    name_start,
    open_loads,
    was_reached,
)
from workers.vllm import ModelMissing, SamplingServer, ServerLost

logger = logging.getLogger(__name__)

MAX_LOSSES = 3  # a call under which servers break so often is what breaks them


@dataclass(slots=True, eq=False, kw_only=True)
class Sampler:
    """The work of one sampler process. Everything that must last is in rows."""

    worker: str
    connect: Callable[[str], SamplingServer] = SamplingServer
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    publisher: Publisher = field(default_factory=Publisher)
    losses: Counter[int] = field(default_factory=Counter)  # calls that lost a server
    limit: int = IN_FLIGHT  # of one server
    rest_seconds: float = 0.0  # between two looks at what is no call
    looked_at: float = -inf
    starts: dict[str, Start] = field(default_factory=dict)
    leaving: list[Start] = field(default_factory=list)  # they may end what they are at
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    proving: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    tokenizers: dict[str, ChatTokenizer] = field(default_factory=dict)
    leads: bool = False  # of several samplers one proves what deployments are to serve
    changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        self.changes = Changes(self.find_holders, self.guard)

    def find_holders(self, change: DeploymentChange) -> list[Start]:
        return [each for each in self.starts.values() if each.can_hold(change)]

    async def guard(self, change: DeploymentChange, work: Awaitable[None]) -> None:
        """Whatever goes wrong is this change's alone."""
        try:
            await work
        except Exception:
            logger.exception("change %s failed", change.pk)
            text = f"Internal error: the sampler's log has the details under change {change.pk}."
            await in_database(services.settle_change, change, error=text)
        finally:
            self.woken.set()

    async def begin(self) -> None:
        """One that was killed has left its calls behind, and loads that nobody ends."""
        await in_database(calls.requeue_calls, worker=self.worker)
        if not set(await in_database(list_samplers)) - {self.worker}:
            await in_database(loads.lose_unfinished)

    async def run_once(self) -> bool:
        """Begin what waits and finds room. True: there may be more.

        Calls do not wait for a look around where there is a server that can answer them.
        """
        looks_first = not (self.rest_seconds and self.starts)
        if looks_first and self.is_rested:
            await self.look_around()
        is_more = await self.begin_calls()
        if not looks_first and self.is_rested:
            known = set(self.starts)
            await self.look_around()
            is_more = is_more or self.starts.keys() != known
        return is_more

    async def begin_calls(self) -> bool:
        starts = [each for each in self.starts.values() if each.room]
        room = sum(each.room for each in starts)
        if not room:
            return False
        among = describe_answerable(starts) & ~Q(deployment__in=self.changes.closed)
        taken = await in_database(calls.claim_calls, worker=self.worker, limit=room, among=among)
        begun = [await self.begin_call(call) for call in taken]
        return bool(taken) and len(taken) == room and all(begun)

    @property
    def is_rested(self) -> bool:
        return time.monotonic() - self.looked_at >= self.rest_seconds

    async def look_around(self) -> None:
        """Everything but calls: they come and end by the hundred in a second, and this does not."""
        self.looked_at = time.monotonic()
        await self.meet_replicas()
        await in_database(abandoned.cancel_unwanted)
        await self.prove_deployments()

    def drop(self, request_id: str) -> None:
        """A call was cancelled: its server stops at once."""
        number = request_id.rpartition("-")[2]
        task = self.tasks.get(int(number)) if number.isdecimal() else None
        if task is not None:
            task.cancel()

    async def meet_replicas(self) -> None:
        """Open what has started since the last look, and let go of what has ended."""
        ready = {name_start(each): each for each in await in_database(replicas.list_ready)}
        for name in self.starts.keys() - ready.keys():
            start = self.starts.pop(name)
            self.leaving.append(start)
        for name, replica in ready.items():
            if name in self.starts:
                self.starts[name].replica = replica
            else:
                self.starts[name] = await self.open_start(replica)
            start = self.starts[name]
            start.is_others = start.is_in_place and not self.leads
        await self.see_out()

    async def open_start(self, replica: Replica) -> Start:
        server = self.connect(replica.url)
        loads = open_loads(replica, server)
        await loads.adopt()
        return Start(replica=replica, server=server, loads=loads, limit=self.limit)

    async def see_out(self) -> None:
        """Who was told to stop ends what it is at; who is lost answers nothing any more."""
        if not self.leaving:
            return
        stopping = await in_database(replicas.list_stopping)
        for start in list(self.leaving):
            if start.name not in stopping and not start.is_lost:
                start.is_lost = True  # once: what is cancelled is being put back by the next look
                for pk in start.calls:
                    self.tasks[pk].cancel()
            if not start.calls:
                self.leaving.remove(start)
                await start.close()

    async def begin_call(self, call: SamplingCall) -> bool:
        """False: meanwhile none that could answer it has room, and it waits on."""
        start = choose_start(self.starts.values(), call)
        if start is None:
            await in_database(calls.requeue_call, call, worker=self.worker)
            return False
        start.calls.add(call.pk)
        if not start.is_used:  # said before it ends: a server that nobody uses may be stopped
            start.is_used = True
            await in_database(replicas.note_used, [start.replica.name])
        self.tasks[call.pk] = asyncio.create_task(self.answer(call, start))
        return True

    async def answer(self, call: SamplingCall, start: Start) -> None:
        """Whatever goes wrong is this call's alone."""
        try:
            answer = await self.sample_from(start, call)
            await in_database(store_answer, call, answer, self.worker)
        except InvalidInput as error:
            await in_database(store_failure, call, str(error), "user", self.worker)
        except (LoadFailed, ModelMissing) as error:
            await in_database(store_failure, call, str(error), "server", self.worker)
        except WeightsMoved:
            await in_database(calls.requeue_call, call, worker=self.worker)
        except ServerLost as error:
            await self.put_back(call, start, error)
        except asyncio.CancelledError:
            if not start.is_lost:
                raise
            await self.put_back(call, start, lose(start))
        except Exception:
            logger.exception("call %s failed", call.pk)
            text = f"Internal error: the sampler's log has the details under call {call.pk}."
            await in_database(store_failure, call, text, "server", self.worker)
        finally:
            start.calls.discard(call.pk)
            del self.tasks[call.pk]
            self.woken.set()

    async def sample_from(self, start: Start, call: SamplingCall) -> Answer:
        """A server reads a base model when it is first asked for it, which may take a minute."""
        name = call.base_model.name
        start.cold[name] += 1
        try:
            await start.open_base(call.base_model)
            answer = await self.sample(start, call)
            start.warm.add(name)
            return replace(answer, replica=start.replica)
        finally:
            start.cold[name] -= 1

    async def sample(self, start: Start, call: SamplingCall) -> Answer:
        tokenizer = await self.find_tokenizer(call.base_model)
        request = make_request(call, tokenizer)
        drawing = Drawing(call=call, request=request, tokenizer=tokenizer, tell=self.publisher.say)
        load, output = await self.changes.answer(
            call, lambda checkpoint: self.draw(start, call, checkpoint, drawing)
        )
        return drawing.make_answer(output, load)

    async def draw(
        self, start: Start, call: SamplingCall, checkpoint: Checkpoint | None, drawing: Drawing
    ) -> tuple[HotLoad | None, SampleOutput]:
        if checkpoint is None:
            return None, await drawing.sample(start.server, call.base_model.name)
        if checkpoint.deleted_at is not None:
            raise InvalidInput(f"The checkpoint {checkpoint.name} was deleted.")
        return await start.loads.use(
            checkpoint, lambda load: drawing.sample(start.server, start.loads.name_model(load))
        )

    async def find_tokenizer(self, base_model: BaseModel) -> ChatTokenizer:
        if base_model.path not in self.tokenizers:
            self.tokenizers[base_model.path] = await asyncio.to_thread(
                ChatTokenizer.load, base_model.path
            )
        return self.tokenizers[base_model.path]

    async def put_back(self, call: SamplingCall, start: Start, error: ServerLost) -> None:
        """Another start or another replica answers it, unless it is what breaks servers."""
        start.pause()
        self.losses[call.pk] += was_reached(error)
        if self.losses[call.pk] < MAX_LOSSES:
            logger.warning("call %s waits again: %s", call.pk, error)
            await in_database(calls.requeue_call, call, worker=self.worker)
        else:
            text = f"The sampling server broke {MAX_LOSSES} times under this call: {error}"
            await in_database(store_failure, call, text, "server", self.worker)

    async def prove_deployments(self) -> None:
        if not self.leads:
            return
        await self.changes.begin()
        for deployment in await in_database(services.list_loading):
            start = choose_for_checkpoint(
                self.starts.values(), deployment.base_model, deployment.checkpoint
            )
            if deployment.pk not in self.proving and start is not None:
                self.proving[deployment.pk] = asyncio.create_task(self.prove(deployment, start))

    async def prove(self, deployment: Deployment, start: Start) -> None:
        """A deployment is ready when its checkpoint is loaded and agrees."""
        try:
            load = await self.load_for(deployment, start)
            await in_database(services.mark_ready, deployment, load)
        except (InvalidInput, LoadFailed, ModelMissing) as error:
            await in_database(services.mark_failed, deployment, str(error))
        except ServerLost:
            start.pause()
        finally:
            del self.proving[deployment.pk]
            self.woken.set()

    async def load_for(self, deployment: Deployment, start: Start) -> HotLoad | None:
        if deployment.checkpoint is None:
            return None
        await start.open_base(deployment.base_model)
        load, _ = await start.loads.use(deployment.checkpoint, nothing_more)
        return load

    async def wait(self) -> None:
        """Until something that was begun has ended."""
        tasks = [*self.tasks.values(), *self.proving.values(), *self.changes.tasks.values()]
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
        await in_database(beat_worker, name=self.worker, holds=await self.describe())
        await self.follow((await in_database(list_samplers))[:1] == [self.worker])
        await self.note_used()

    async def follow(self, leads: bool) -> None:
        """What another sampler has put in place meanwhile is to be seen before it is used."""
        if leads and not self.leads:
            for name in [name for name, each in self.starts.items() if each.is_others]:
                await self.starts.pop(name).close()
        self.leads = leads

    async def describe(self) -> dict[str, object]:
        """What pages say of us."""
        starts = list(self.starts.values())
        return {
            "server": ", ".join(sorted(self.starts)) or None,
            "adapters": sorted(name for start in starts for name in start.loads.names),
            "calls": len(self.tasks),
            "starting": await in_database(replicas.count_starting),
            "waits": await in_database(replicas.explain_waits),
            "loading": sorted({name for each in starts for name in set(+each.cold) - each.warm}),
        }

    async def note_used(self) -> None:
        used = [each for each in self.starts.values() if each.is_used or each.calls]
        for start in used:
            start.is_used = False
        if used:
            await in_database(replicas.note_used, [each.replica.name for each in used])

    async def stop(self) -> None:
        """The servers live on with what they hold: the next sampler finds it in rows."""
        tasks = [*self.tasks.values(), *self.proving.values(), *self.changes.tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for start in [*self.starts.values(), *self.leaving]:
            await start.close()
        await in_database(calls.requeue_calls, worker=self.worker)
