"""vLLM's exchange of its one model as a test plays it: the built-in server generates behind it."""

import asyncio
import json
from typing import Any

import httpx

from tests.workers.serving.conftest import MODEL


class OneModel(httpx.AsyncBaseTransport):
    """Whatever is asked of MODEL is answered by the weights that are in its place."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.name, self.digest, self.version = MODEL, "", ""
        self.modes: list[str] = []  # of each pause
        self.num_loaded = 0
        self.held: asyncio.Event | None = None  # what generates text waits for it
        self.reached = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        path = request.url.path
        if path == "/inference/v1/generate":
            return await self.generate(body)
        if path == "/pause":
            self.modes.append(request.url.params["mode"])
        elif path == "/update_weights":
            await self.load(body["update_info"])
        elif path == "/finish_weight_update":
            self.version = body["weight_version"]
        return httpx.Response(200, json=self.say(path, body))

    def say(self, path: str, body: Any) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path == "/weight_info":
            return {"weight_version": self.version}
        state = {"is_preparing": False, "error": "", "digest": self.digest}
        return {"results": [state]} if body.get("method") else {}

    async def generate(self, body: Any) -> httpx.Response:
        name = self.name  # a request keeps the weights that it began with
        if self.held is not None and "prompt_logprobs" not in body["sampling_params"]:
            self.reached.set()
            await self.held.wait()
        return await self.post("/inference/v1/generate", body | {"model": name})

    async def load(self, info: Any) -> None:
        self.num_loaded += 1
        name = f"weights-{self.num_loaded}"
        await self.post("/v1/load_model", {"model_name": name, "model_path": info["path"]})
        self.name, self.digest = name, info["digest"]

    async def post(self, path: str, body: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=self.inner, base_url="http://behind") as client:
            answer = await client.post(path, json=body)
        return httpx.Response(answer.status_code, json=answer.json())
