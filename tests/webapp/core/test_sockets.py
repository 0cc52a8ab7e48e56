"""Who may watch what: a socket says only that something changed, and only to members."""

import pytest
from django.contrib.auth.models import AnonymousUser

from tests.webapp.cast import make_actor, make_run, make_viewer
from webapp.accounts.consumers import ProjectConsumer
from webapp.accounts.models import Membership, User
from webapp.core.consumers import HintConsumer
from webapp.core.events import project_group, run_group
from webapp.runs.consumers import RunConsumer

pytestmark = pytest.mark.django_db


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
