"""Polls and heartbeats of trainers, answered by the same doors as every other client's."""

import re

from webapp.accounts.models import Actor
from webapp.core.threads import App, Receive, Scope, Send
from webapp.firetitan.endpoints import KEY_VARIABLE
from webapp.firetitan.results import write_json
from webapp.wire import heartbeats, waiting
from webapp.wire.door import Answer, Door
from webapp.wire.heartbeats import Heartbeats
from webapp.wire.passes import JSON, PROTOBUF
from webapp.wire.waiting import ParkedPolls

PATH = re.compile(r"/training/v1/rlorTrainerJobs/[^/]+/[^/]+(/api/v1/[a-z_]+)")


def find_trainer_path(path: str) -> str:
    """What is asked of a trainer, as other clients name it; empty: nothing is."""
    match = PATH.fullmatch(path)
    return match[1] if match else ""


class TrainerDoor(Door):
    """Another way into a door: keys are named after this client's variable."""

    key_variable = KEY_VARIABLE

    def __init__(self, inner: Door) -> None:
        super().__init__(inner.threads)
        self.inner = inner

    async def answer(self, actor: Actor, body: bytes) -> Answer:
        return await self.inner.answer(actor, body)

    async def answer_busy(self) -> Answer:
        return await self.inner.answer_busy()

    def answer_stopping(self) -> Answer:
        return self.inner.answer_stopping()


class JsonPolls(TrainerDoor):
    """Results are kept as protobuf."""

    async def answer(self, actor: Actor, body: bytes) -> Answer:
        status, content_type, result = await super().answer(actor, body)
        if content_type == PROTOBUF:
            return status, JSON, await self.look(write_json, result)
        return status, content_type, result


class TrainerPolls:
    """Results go as protobuf to who reads that, as the SDK does for training passes."""

    def __init__(self, polls: ParkedPolls) -> None:
        self.as_kept, self.as_json = TrainerDoor(polls), JsonPolls(polls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
        door = self.as_kept if PROTOBUF.encode() in accepted else self.as_json
        await door(scope, receive, send)


def open_doors(polls: ParkedPolls, beats: Heartbeats) -> dict[str, App]:
    """By the last part of their paths, which is the whole path of other clients."""
    return {waiting.PATH: TrainerPolls(polls), heartbeats.PATH: TrainerDoor(beats)}
