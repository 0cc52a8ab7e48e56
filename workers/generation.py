"""The built-in sampling server: vLLM's calls, answered by training.engine on this machine.

Run as `python -m workers.generation --model NAME=PATH --port P`. It listens on 127.0.0.1 only and
has no authentication: what faces the network is the web process.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn

from training.engine.calls import NewToken
from training.errors import InvalidInput
from training.types import SampleOutput
from workers.generation_wire import (
    GenerateBody,
    describe_end,
    describe_error,
    describe_output,
    describe_token,
    read_generate,
    read_text,
)
from workers.residents import Job, Opened, Opening, Residents, Setup, TurnThread, UnknownModel

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, Mapping[str, Any]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STOP_SECONDS = 3
KEEP_ALIVE_SECONDS = 3600  # the client closes idle connections, and before the server


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
            ("POST", "/v1/load_model"): self.load_model,
            ("POST", "/v1/unload_model"): self.unload_model,
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

    async def report_health(self, _body: Mapping[str, Any]) -> Answer:
        return (200, {}) if self.turns.is_alive else (503, {})

    async def list_models(self, _body: Mapping[str, Any]) -> Answer:
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

    async def load_model(self, body: Mapping[str, Any]) -> Answer:
        """A whole model beside the ones of the command line: vLLM has no such call."""
        name, folder = read_text(body, "model_name"), Path(read_text(body, "model_path"))
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Opened] = loop.create_future()
        opening = Opening(model=name, deliver=lambda opened: settle_soon(loop, answer, opened))
        await self.ask(lambda: self.turns.residents.load_model(opening, folder))
        await answer
        return 200, {"message": f"Success: model '{name}' loaded."}

    async def unload_model(self, body: Mapping[str, Any]) -> Answer:
        name = read_text(body, "model_name")
        await self.ask(lambda: self.turns.residents.unload_model(name))
        return 200, {"message": f"Success: model '{name}' removed."}

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

    async def stream(self, body: GenerateBody) -> AsyncGenerator[Mapping[str, Any], None]:
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[NewToken | None] = asyncio.Queue()

        def listen(token: NewToken) -> None:
            call_soon(loop, lambda: tokens.put_nowait(token))

        whole = asyncio.create_task(self.sample(body, listen))
        whole.add_done_callback(lambda _: tokens.put_nowait(None))
        try:
            while (token := await tokens.get()) is not None:
                yield describe_token(body, token)
            yield describe_end(body, await whole)
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


def settle_soon(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[T],
    result: T | InvalidInput | UnknownModel,
) -> None:
    """From the thread: complete a future of the event loop, unless nobody waits any more."""

    def settle() -> None:
        if answer.done():
            return
        if isinstance(result, InvalidInput | UnknownModel):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    call_soon(loop, settle)


def call_soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """From the thread. A loop that has ended took whoever waited with it: nothing else may end."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)


async def unless_gone(work: Coroutine[Any, Any, Answer], receive: Receive) -> Answer:
    """The work's answer; where the client hangs up first, the work is cancelled."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(scope: Mapping[str, Any], receive: Receive) -> Mapping[str, Any]:
    """A JSON object. Other types are refused: a web page could post those here unasked."""
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0]
    if kind != b"application/json":
        raise InvalidInput("send the body as content-type application/json")
    pieces, is_more = [], True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        pieces.append(message.get("body", b""))
        is_more = message.get("more_body", False)
    try:
        body = json.loads(b"".join(pieces))
    except ValueError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


async def send_json(send: Send, status: int, answer: Mapping[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def send_stream(send: Send, events: AsyncGenerator[Mapping[str, Any], None]) -> None:
    """Server-sent events. What goes wrong before the first one is still an ordinary error."""
    first = await anext(events)
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        await send_event(send, json.dumps(first))
        async for event in events:
            await send_event(send, json.dumps(event))
    except InvalidInput as error:
        await send_event(send, json.dumps(describe_error(400, str(error))))
    finally:
        await events.aclose()
    await send_event(send, "[DONE]")
    await send({"type": "http.response.body", "body": b""})


async def send_event(send: Send, text: str) -> None:
    body = f"data: {text}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers.generation", description=__doc__)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, help="torch's threads, all cores where left out")
    parser.add_argument("--max-models", type=int, default=2, help="base models in memory at once")
    parser.add_argument("--max-adapters", type=int, default=64, help="in memory, per base model")
    return parser.parse_args(arguments)


def read_setup(options: argparse.Namespace) -> Setup:
    pairs = [text.partition("=") for text in options.model]
    return Setup(
        models={name: Path(path) for name, _, path in pairs},
        device=options.device,
        dtype=DTYPES[options.dtype],
        max_models=options.max_models,
        max_adapters=options.max_adapters,
    )


async def serve(setup: Setup, port: int) -> int:
    """Until SIGTERM (0), or until the thread that samples has died (1)."""
    turns = TurnThread(Residents(setup), lambda: os.kill(os.getpid(), signal.SIGTERM))
    config = uvicorn.Config(
        App(turns),
        host="127.0.0.1",
        port=port,
        lifespan="off",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    turns.start()
    await uvicorn.Server(config).serve()
    has_died = not turns.is_alive
    if not has_died:
        await asyncio.to_thread(turns.stop)
    return int(has_died)


def main() -> None:
    options = read_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    # uvicorn raises the signal again when it has stopped: by then there is nothing left to end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(asyncio.run(serve(read_setup(options), options.port)))


if __name__ == "__main__":
    main()
