"""What the suite must not let through, tried without a server; prints the endings as JSON."""

import json
import os
import threading

import httpx
import suite
import tinker
from endings import describe_error
from registry import Case
from suite import describe, find_missed, find_uncovered, find_unpassed, play
from surface import find_surface
from world import World, make_datum


def ask(status: int, body: object) -> tinker.APIStatusError:
    request = httpx.Request("POST", "http://server/api/v1/optim_step")
    return tinker.APIStatusError(
        "told", response=httpx.Response(status, request=request), body=body
    )


def wait_for_ever(world: World) -> None:
    threading.Event().wait()


def answer_wrongly(world: World) -> None:
    assert make_datum() is None, "a datum came"


def answer(world: World) -> None:
    world.performed.add(("RestClient", "get_session"))


suite.CALL_SECONDS = 0.2
world = World()
half = Case("RestClient", "get_session", answer)
endings = {
    "no case": find_uncovered({"RestClient": ["get_session", "a_new_call"]})[0],
    "no answer": describe("", "", play(Case("RestClient", "list_sessions", wait_for_ever), world)),
    "wrong answer": describe("", "", play(Case("RestClient", "whoami", answer_wrongly), world)),
    "sentence": describe("", "", describe_error(ask(400, {"detail": "Say which run."}))),
    "bare refusal": describe("", "", describe_error(ask(400, None))),
    "server's error": describe("", "", describe_error(ask(500, {"detail": "Internal error."}))),
}
play(half, world)
print(
    json.dumps(
        {
            "endings": endings,
            "missed": find_missed(half, world),
            "unpassed": [call["call"] for call in find_unpassed(find_surface(), World())],
        }
    ),
    flush=True,
)
os._exit(0)
