"""Who may watch what: a socket says only that something changed, and only to members."""

import json

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.layers import get_channel_layer
from django.contrib.auth.models import AnonymousUser

from tests.webapp.cast import make_actor, make_run, make_viewer
from webapp.accounts.consumers import ProjectConsumer
from webapp.accounts.models import Membership, User
from webapp.core import subscription
from webapp.core.consumers import HintConsumer, read_age
from webapp.core.events import project_group, run_group
from webapp.runs.consumers import RunConsumer

pytestmark = pytest.mark.django_db

PATIENCE = 60.0


def ask(consumer: HintConsumer, user: User | AnonymousUser, **kwargs: str) -> str:
    consumer.scope = {"user": user, "url_route": {"kwargs": kwargs}}
    return consumer.find_group()


def test_members_and_viewers_watch_a_project_and_its_runs() -> None:
    alice = make_actor()
    run = make_run(alice)
    for user in (alice.user, make_viewer(alice).user):
        assert ask(RunConsumer(), user, run_id=run.pk) == run_group(run.pk)
        watched = ask(ProjectConsumer(), user, project_id=alice.project.pk)
        assert watched == project_group(alice.project.pk)


def test_strangers_those_who_left_and_those_not_signed_in_watch_nothing() -> None:
    alice, vera = make_actor(), make_actor("vera")
    run = make_run(alice)
    Membership.objects.filter(user=alice.user).delete()
    for user in (alice.user, vera.user, AnonymousUser()):
        assert ask(RunConsumer(), user, run_id=run.pk) == ""
        assert ask(ProjectConsumer(), user, project_id=alice.project.pk) == ""


class OneGroup(HintConsumer):
    def find_group(self) -> str:
        return "run.one"


async def test_a_page_is_told_what_changed_between_its_making_and_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscription, "_recent", {})
    for group, what in (("run.one", "old"), ("run.one", "status"), ("run.two", "log")):
        subscription.remember(group, what)
    subscription._recent["run.one", "old"] -= 30
    socket = ApplicationCommunicator(OneGroup.as_asgi(), {"type": "websocket"})
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output(PATIENCE))["type"] == "websocket.accept"
    await socket.send_input({"type": "websocket.receive", "text": "20000"})
    assert json.loads((await socket.receive_output(PATIENCE))["text"]) == {"what": "status"}
    await get_channel_layer().group_send("run.one", {"type": "changed", "what": "metrics"})
    assert json.loads((await socket.receive_output(PATIENCE))["text"]) == {"what": "metrics"}
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(PATIENCE)


def test_what_is_remembered_is_young_and_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "_recent", {})
    for what in ("log", "status", "log"):
        subscription.remember("run.one", what)
    assert subscription.list_recent("run.one", 1) == ["status", "log"]
    subscription._recent["run.one", "status"] -= 100
    subscription.remember("run.one", "log")
    assert list(subscription._recent) == [("run.one", "log")]


@pytest.mark.parametrize(
    ("said", "age"), [("1500", 1.5), ("", 0), ("-1", 0), ("1e3", 0), ("9" * 10, 0)]
)
def test_an_age_is_a_number_of_milliseconds(said: str, age: float) -> None:
    assert read_age(said) == age
