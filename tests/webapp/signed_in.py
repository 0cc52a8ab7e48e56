"""Browsers of the cast: signed-in clients, viewers, and how many queries a page takes."""

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from webapp.accounts.models import Actor, Membership, Role, User


def sign_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.user)
    return client


def make_viewer(of: Actor, name: str = "vera") -> Actor:
    """May read in the project of `of`, and nothing else."""
    user = User.objects.create_user(username=name)
    Membership.objects.create(project=of.project, user=user, role=Role.VIEWER)
    return Actor(user=user, project=of.project, role=Role.VIEWER)


def count_queries(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return len(captured)
