"""Browsers of the page tests: signed in, in a project, in a role."""

from django.test import Client

from webapp.accounts.models import Actor, Membership, Role, User


def open_browser(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.user)
    return client


def make_viewer(actor: Actor, username: str = "vera") -> User:
    user = User.objects.create_user(username)
    Membership.objects.create(project=actor.project, user=user, role=Role.VIEWER)
    return user
