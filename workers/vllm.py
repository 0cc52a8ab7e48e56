"""Speaks to sampling servers over HTTP, vLLM or our own."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import httpx

from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest
from workers.vllm_stats import ServerStats, read_stats
from workers.vllm_wire import (
    BrokenAnswer,
    StreamedToken,
    StreamedUsage,
    build_body,
    read_event,
    read_output,
    read_refusal,
    repeat,
)

HEALTH_SECONDS = 5.0
ENGINE_SECONDS = 120.0  # a step, or an exchange of weights, takes seconds
PREPARE_SECONDS = 0.05
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
REFUSED = re.compile(r"Worker failed with error '(.*)', please check", re.DOTALL)
ALREADY_LOADED = "already been loaded"  # vLLM's words; a name stands for one adapter for ever
TESTED_VERSION = "0.32.0"

PauseMode = Literal["keep", "wait"]

GENERATE = "/inference/v1/generate"
ALONE = {"connection": "close"}  # no other request comes over this one's connection


class ModelMissing(Exception):  # noqa: N818 - an answer to act on: load the adapter, ask again
    """The server does not know the model: it has restarted, or the name was unloaded."""


class ServerLost(Exception):  # noqa: N818 - the request may be repeated when it is back
    """The server could not be reached, or broke while it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What answers. `digest`: of whole weights that were put in place; "": those of its start."""

    engine: Literal["built_in", "vllm"]
    version: str = ""
    weight_version: str = ""  # the label of the weights in place
    digest: str = ""
    has_extension: bool = False  # whole weights can be put in place

    @property
    def warning(self) -> str:
        """A sentence, where there is something to know about it."""
        if self.engine == "vllm" and self.version != TESTED_VERSION:
            return (
                f"This is vLLM {self.version}; Hone was tested with {TESTED_VERSION}: each"
                " checkpoint is still proven before it is served."
            )
        return ""


class SamplingServer:
    """An async client of one server. Closed with `aclose`, or used as a context manager."""

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        # No read timeout: a long sample is not a lost one, and a dead server closes the socket.
        timeout = httpx.Timeout(None, connect=HEALTH_SECONDS)
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(
            base_url=url, timeout=timeout, limits=limits, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.client.aclose()

    async def health(self) -> bool:
        try:
            answer = await self.client.get("/health", timeout=HEALTH_SECONDS)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    async def is_working(self, seconds: float = ENGINE_SECONDS) -> bool:
        """/health speaks for the process that takes requests, and not for vLLM's that computes."""
        try:
            async with asyncio.timeout(seconds):
                await self._ask_engine()
        except (TimeoutError, ServerLost):
            return False
        except (InvalidInput, ModelMissing):  # it answers, if with a refusal
            return True
        return True

    async def _ask_engine(self) -> None:
        try:
            await self._call_workers("read_weights")
        except ModelMissing:  # no vLLM: of ours the thread that samples answers this
            await self._get("/v1/models")

    async def generate(self, model: str, request: SampleRequest) -> SampleOutput:
        """`model` is a base model's name or an adapter's. Cancelling it cancels the request."""
        answer = await self._post(GENERATE, build_body(model, request))
        try:
            return read_output(answer, request)
        except BrokenAnswer as error:
            raise ServerLost(str(error)) from error

    async def stream(
        self, model: str, request: SampleRequest
    ) -> AsyncGenerator[StreamedToken | StreamedUsage, None]:
        """Tokens as they are made, then their cost. Close the generator to cancel the request."""
        body = build_body(model, request) | STREAMED
        try:
            async with self.client.stream("POST", GENERATE, json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                check_answer(answer)
                async for line in answer.aiter_lines():
                    for token in read_event(line, request):
                        for each in repeat(token, request):
                            yield each
        except (httpx.TransportError, BrokenAnswer) as error:
            raise ServerLost(f"the sampling server is lost: {error!r}") from error

    async def load_adapter(self, name: str, path: str | Path, *, base: str | None = None) -> None:
        """Loading what is loaded changes nothing. `base` matters where a server has several."""
        body = {"lora_name": name, "lora_path": str(path)}
        try:
            await self._post("/v1/load_lora_adapter", body | ({"base_model": base} if base else {}))
        except InvalidInput as error:
            if ALREADY_LOADED not in str(error):
                raise
        except ServerLost as error:
            raise_refused(error)

    async def unload_adapter(self, name: str) -> None:
        """Raises ModelMissing where the server does not have it."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def list_adapters(self) -> list[str]:
        models = (await self._get("/v1/models")).json()["data"]
        return [model["id"] for model in models if model.get("parent")]

    async def load_model(self, name: str, path: str | Path) -> None:
        """A whole model, on the built-in server. Loading what is loaded changes nothing."""
        try:
            await self._post("/v1/load_model", {"model_name": name, "model_path": str(path)})
        except ModelMissing:
            raise InvalidInput(
                "This sampling server holds one model and takes adapters of it alone, as vLLM does:"
                " checkpoints of all weights are served by the built-in server."
            ) from None

    async def unload_model(self, name: str) -> None:
        """Raises ModelMissing where the server does not have it."""
        await self._post("/v1/unload_model", {"model_name": name})

    async def replace_weights(
        self, folder: Path, *, digest: str, version: str, mode: PauseMode, is_prepared: bool = False
    ) -> float:
        """All weights of vLLM's model by those of `folder`; how many milliseconds it stood still.

        keep: what runs goes on with the new weights. wait: it is finished with the old ones first.
        InvalidInput: the old weights serve on. Once begun it is ended, whoever stops waiting.
        `is_prepared`: by `prepare_weights`.
        """
        if not is_prepared:
            await self.prepare_weights(folder, digest)
        return await asyncio.shield(
            asyncio.create_task(self._replace_weights(folder, digest, version, mode))
        )

    async def _replace_weights(
        self, folder: Path, digest: str, version: str, mode: PauseMode
    ) -> float:
        began = time.perf_counter()
        await self._post(f"/pause?mode={mode}")
        try:
            await self._start_update()
            await self._update(folder, digest)
        except (InvalidInput, ServerLost):  # the old weights are there, or no server is
            await self.resume()
            raise
        await self._post("/finish_weight_update", {"weight_version": version})
        # What is kept of old prompts was computed with the old weights.
        await self._post("/reset_prefix_cache")
        await self.resume()
        return 1000 * (time.perf_counter() - began)

    async def resume(self) -> None:
        """Whoever paused the server may have gone since."""
        await self._post("/resume")

    async def prepare_weights(self, folder: Path, digest: str) -> None:
        """Looked through while requests run; most of what can be wrong is found here."""
        try:
            await self._call_workers("prepare_weights", path=str(folder), digest=digest)
        except ModelMissing:
            raise InvalidInput(
                "This sampling server cannot replace its model: it is not a vLLM that was started"
                " with Hone's extension."
            ) from None
        while any(state["is_preparing"] for state in await self._call_workers("read_weights")):
            await asyncio.sleep(PREPARE_SECONDS)
        await self._check_prepared()

    async def _check_prepared(self) -> None:
        for state in await self._call_workers("read_weights"):
            if state["error"]:
                raise InvalidInput(state["error"])

    async def _start_update(self) -> None:
        try:
            await self._post("/start_weight_update")
        except ServerLost as error:
            if "already active" not in str(error):
                raise
            # One whose caller died before its end: nothing of it is left but that it was begun.
            await self._post("/finish_weight_update")
            await self._post("/start_weight_update")

    async def _update(self, folder: Path, digest: str) -> None:
        info = {"path": str(folder), "digest": digest}
        try:
            await self._post("/update_weights", {"update_info": info})
        except ServerLost as error:
            await self._check_prepared()
            raise_refused(error)

    async def describe(self) -> ServerFacts:
        try:
            version = (await self._get("/version")).json()["version"]
        except ModelMissing:
            return ServerFacts(engine="built_in")
        try:
            label = (await self._get("/weight_info")).json()["weight_version"]
            states = await self._call_workers("read_weights")
        except (ModelMissing, InvalidInput, ServerLost):
            return ServerFacts(engine="vllm", version=version)
        return ServerFacts(
            engine="vllm",
            version=version,
            weight_version=label or "",
            digest=states[0]["digest"],
            has_extension=True,
        )

    async def read_stats(self) -> ServerStats:
        """All zero on a server that keeps no such numbers."""
        try:
            return read_stats((await self._get("/metrics")).text)
        except ModelMissing:
            return ServerStats()

    async def _call_workers(self, method: str, **arguments: str) -> list[Any]:
        """Have each of vLLM's workers do it, through the engine and not beside it."""
        answer = await self._post("/collective_rpc", {"method": method, "kwargs": arguments})
        results: list[Any] = answer["results"] if answer else []
        return results

    async def _get(self, path: str) -> httpx.Response:
        try:
            answer = await self.client.get(path)
        except httpx.TransportError as error:
            raise ServerLost(f"the sampling server is lost: {error!r}") from error
        check_answer(answer)
        return answer

    async def _post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        # vLLM closes the connection of a call that failed, a moment after its answer.
        headers = None if path == GENERATE else ALONE
        try:
            answer = await self.client.post(path, json=body or {}, headers=headers)
        except httpx.TransportError as error:
            raise ServerLost(f"the sampling server is lost: {error!r}") from error
        check_answer(answer)
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if is_json else None


def raise_refused(error: ServerLost) -> NoReturn:
    """What one of vLLM's workers did not take, and lived on: vLLM answers 500 then too."""
    found = REFUSED.search(str(error))
    if found is None:
        raise error
    raise InvalidInput(found[1]) from error


def check_answer(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    message = read_refusal(answer.text)
    if answer.status_code == 404:
        raise ModelMissing(message)
    if answer.status_code in (400, 422):
        raise InvalidInput(message)
    raise ServerLost(f"the sampling server answered {answer.status_code}: {message}")
