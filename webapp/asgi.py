"""The ASGI application: Django's pages and APIs, parked polls, WebSockets."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
pages = get_asgi_application()

# These import tables, so the apps come first.
from webapp.core.bodies import BoundedBodies  # noqa: E402
from webapp.core.slashes import SingleSlashes  # noqa: E402
from webapp.core.subscription import listen_for_ever, on_finished, on_pieces  # noqa: E402
from webapp.core.threads import App, PooledHandler, Receive, Scope, Send  # noqa: E402
from webapp.deployments.streams import Streams  # noqa: E402
from webapp.deployments.watching import AnswerStreams, is_watched, watches  # noqa: E402
from webapp.firetitan.doors import find_trainer_path, open_doors  # noqa: E402
from webapp.openai.door import InferenceDoor  # noqa: E402
from webapp.routing import websocket_urlpatterns  # noqa: E402
from webapp.tinker import futures  # noqa: E402
from webapp.wire import door, heartbeats, waiting  # noqa: E402

NUM_API_THREADS = 8
INFERENCE_PREFIXES = ("/v1/", "/inference/")
API_PREFIXES = ("/api/", "/v1/accounts", "/training/", "/hot_load/")

threads = ThreadPoolExecutor(door.NUM_THREADS, thread_name_prefix="door")
polls = waiting.ParkedPolls(threads)
samplers = futures.ParkedSamplers(threads)
beats = heartbeats.Heartbeats(threads)
streams = Streams()
inference = InferenceDoor(streams)
doors = {waiting.PATH: polls, futures.PATH: samplers, heartbeats.PATH: beats}
trainer_doors = open_doors(polls, beats)
api = PooledHandler(num_threads=NUM_API_THREADS)
watched = AuthMiddlewareStack(AnswerStreams(watches))
on_finished(polls.wake)
on_finished(samplers.wake)
on_finished(streams.wake)
on_pieces(streams.hear)


def find_door(scope: Scope) -> App | None:
    path: str = scope["path"]
    return doors.get(path) or trainer_doors.get(find_trainer_path(path))


async def answer_http(scope: Scope, receive: Receive, send: Send) -> None:
    chosen = find_door(scope) if scope["method"] == "POST" else None
    if chosen is not None:
        await chosen(scope, receive, send)
    elif scope["path"].startswith(API_PREFIXES):
        await api(scope, receive, send)
    elif is_watched(scope["path"]):
        await watched(scope, receive, send)
    elif scope["path"].startswith(INFERENCE_PREFIXES):
        await inference(scope, receive, send)
    else:
        await pages(scope, receive, send)


async def sweep_for_ever() -> None:
    """What no hint told of, found a moment later."""
    while True:
        await asyncio.sleep(waiting.SWEEP_SECONDS)
        await polls.sweep()
        await samplers.sweep()
        await streams.sweep()


async def live(_scope: Scope, receive: Receive, send: Send) -> None:
    """From the server's start to its end, what no request drives: hints, and the polls' sweep."""
    await receive()
    await beats.begin()
    watches.open(streams)
    endless = (listen_for_ever(), sweep_for_ever(), beats.write_for_ever())
    tasks = [asyncio.create_task(each) for each in endless]
    await send({"type": "lifespan.startup.complete"})
    await receive()
    watches.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await send({"type": "lifespan.shutdown.complete"})


application = ProtocolTypeRouter(
    {
        "http": BoundedBodies(SingleSlashes(answer_http)),
        "lifespan": live,
        "websocket": AllowedHostsOriginValidator(
            AuthMiddlewareStack(URLRouter(websocket_urlpatterns))
        ),
    }
)
