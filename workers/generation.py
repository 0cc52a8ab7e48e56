"""The built-in sampling server: vLLM's calls, answered by training.engine on this machine.

Run as `python -m workers.generation --model NAME=PATH --port P`. It listens on 127.0.0.1 only and
has no authentication: what faces the network is the web process.
"""

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn

from training.engine.calls import NewToken
from training.errors import InvalidInput
from training.types import SampledSequence, SampleOutput, SampleRequest, SamplingParams
from workers.residents import Job, Residents, Result, Setup, TurnThread, UnknownModel

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, Mapping[str, Any]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STOP_SECONDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateBody:
    """What POST /inference/v1/generate says, checked."""

    model: str
    request: SampleRequest
    stop_ids: frozenset[int]
    ignore_eos: bool
    is_streamed: bool


class Disconnected(Exception):  # noqa: N818 - not a fault: the client has gone
    """Nobody waits for the answer any more."""


class App:
    """The ASGI application. Requests wait as futures; `turns` is the thread that answers them."""

    def __init__(self, turns: TurnThread) -> None:
        self.turns = turns
        self.routes: dict[tuple[str, str], Callable[[Mapping[str, Any]], Awaitable[Answer]]] = {
            ("GET", "/health"): self.report_health,
            ("GET", "/v1/models"): self.list_models,
            ("POST", "/v1/load_lora_adapter"): self.load_adapter,
            ("POST", "/v1/unload_lora_adapter"): self.unload_adapter,
        }

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            status, answer = await self.respond(scope, receive, send)
        except InvalidInput as error:
            status, answer = 400, describe_error(400, str(error))
        except UnknownModel as error:
            status, answer = 404, describe_error(404, str(error))
        except Disconnected:
            return
        if status:
            await send_json(send, status, answer)

    async def respond(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> Answer:
        """The answer to send; status 0 where it has been streamed already."""
        key = (scope["method"], scope["path"])
        body = await read_body(scope, receive) if key[0] == "POST" else {}
        if key == ("POST", "/inference/v1/generate"):
            return await unless_gone(self.generate(read_generate(body), send), receive)
        if key not in self.routes:
            return 404, describe_error(404, f"there is no {key[0]} {key[1]}")
        return await self.routes[key](body)

    async def report_health(self, body: Mapping[str, Any]) -> Answer:
        return (200, {}) if self.turns.is_alive else (503, {})

    async def list_models(self, body: Mapping[str, Any]) -> Answer:
        models = await self.ask(self.turns.residents.list_models)
        return 200, {"object": "list", "data": models}

    async def load_adapter(self, body: Mapping[str, Any]) -> Answer:
        name, folder = read_text(body, "lora_name"), Path(read_text(body, "lora_path"))
        base = read_text(body, "base_model") if body.get("base_model") else None
        await self.ask(lambda: self.turns.residents.load_adapter(name, folder, base))
        return 200, {"message": f"Success: LoRA adapter '{name}' added successfully."}

    async def unload_adapter(self, body: Mapping[str, Any]) -> Answer:
        name = read_text(body, "lora_name")
        await self.ask(lambda: self.turns.residents.unload_adapter(name))
        return 200, {"message": f"Success: LoRA adapter '{name}' removed successfully."}

    async def generate(self, body: GenerateBody, send: Send) -> Answer:
        if body.is_streamed:
            await send_stream(send, self.stream(body))
            return 0, {}
        return 200, describe_output(body, await self.sample(body))

    async def sample(
        self, body: GenerateBody, listener: Callable[[NewToken], None] | None = None
    ) -> SampleOutput:
        """Waits for the result; when the waiting is cancelled, so is the request."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SampleOutput] = loop.create_future()
        job = Job(
            model=body.model,
            request=body.request,
            deliver=lambda result: settle_soon(loop, answer, result),
            stop_ids=body.stop_ids,
            ignore_eos=body.ignore_eos,
            listener=listener,
        )
        self.turns.post(lambda: self.turns.residents.add(job))
        try:
            return await answer
        finally:
            if answer.cancelled():
                self.turns.post(lambda: self.turns.residents.cancel(job))

    async def stream(self, body: GenerateBody) -> AsyncIterator[Mapping[str, Any]]:
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[NewToken | None] = asyncio.Queue()
        whole = asyncio.create_task(
            self.sample(
                body, lambda token: void(loop.call_soon_threadsafe(tokens.put_nowait, token))
            )
        )
        whole.add_done_callback(lambda _: tokens.put_nowait(None))
        try:
            while (token := await tokens.get()) is not None:
                yield describe_token(body, token)
            await whole
        finally:
            whole.cancel()

    async def ask(self, work: Callable[[], T]) -> T:
        """Have the thread do it between two turns."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result: T | InvalidInput | UnknownModel = work()
            except (InvalidInput, UnknownModel) as error:
                result = error
            settle_soon(loop, answer, result)

        self.turns.post(run)
        return await answer


def void(_: object) -> None:
    """For a callback whose result is of no use."""
