"""What holds for every page: health, policy, refusals, sockets."""

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from django.test import Client

from tests.webapp.cast import make_actor, make_run, sign_in
from webapp.accounts.models import Actor, User
from webapp.routing import websocket_urlpatterns
from webapp.runs.models import Run


@pytest.mark.django_db
def test_the_server_says_that_it_is_well(client: Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.django_db
def test_no_page_runs_inline_scripts() -> None:
    answer = sign_in(make_actor()).get("/")
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert b"<script>" not in answer.content


@pytest.mark.django_db
def test_what_is_not_there_says_so_in_a_sentence() -> None:
    answer = sign_in(make_actor()).get("/runs/run-none/")
    assert answer.status_code == 404
    assert b"There is nothing here" in answer.content


async def open_socket(path: str, user: User) -> str:
    """How the server answered: websocket.accept or websocket.close."""
    scope = {"type": "websocket", "path": path, "headers": [], "user": user}
    socket = ApplicationCommunicator(URLRouter(websocket_urlpatterns), scope)
    await socket.send_input({"type": "websocket.connect"})
    answer = await socket.receive_output()
    if answer["type"] == "websocket.accept":
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait()
    return str(answer["type"])


def make_cast() -> tuple[Actor, Actor, Run]:
    alice = make_actor()
    return alice, make_actor("carol"), make_run(alice)


@pytest.mark.django_db(transaction=True)
async def test_a_socket_opens_for_members_alone() -> None:
    alice, carol, run = await database_sync_to_async(make_cast)()
    for path in (f"/ws/runs/{run.pk}/", f"/ws/projects/{run.project_id}/"):
        assert await open_socket(path, alice.user) == "websocket.accept"
        assert await open_socket(path, carol.user) == "websocket.close"
