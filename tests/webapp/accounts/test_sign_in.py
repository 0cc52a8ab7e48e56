"""Signing in by password or link, and out."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, sign_in
from webapp.accounts.models import SignInLink, User
from webapp.accounts.services import create_project, create_sign_in_link

pytestmark = pytest.mark.django_db


def test_a_page_asks_who_you_are_and_then_shows_itself(client: Client) -> None:
    user = User.objects.create_user("alice", password="a long password")
    create_project(user=user, name="Alice's")
    asked = client.get("/runs/")
    assert asked.status_code == 302
    assert asked.headers["Location"] == "/sign-in/?next=/runs/"
    answer = client.post(
        asked.headers["Location"],
        {"username": "alice", "password": "a long password", "next": "/runs/"},
    )
    assert answer.headers["Location"] == "/runs/"
    assert client.get("/runs/").status_code == 200


def test_a_wrong_password_is_said_beside_the_form(client: Client) -> None:
    User.objects.create_user("alice", password="a long password")
    answer = client.post("/sign-in/", {"username": "alice", "password": "another one"})
    assert answer.status_code == 400
    assert b"Please enter a correct username and password" in answer.content


def test_the_page_after_sign_in_is_never_on_another_site(client: Client) -> None:
    user = User.objects.create_user("alice", password="a long password")
    create_project(user=user, name="Alice's")
    answer = client.post(
        "/sign-in/",
        {"username": "alice", "password": "a long password", "next": "https://elsewhere.example/"},
    )
    assert answer.headers["Location"] == "/"


def test_a_sign_in_link_opens_the_door_once() -> None:
    alice = make_actor()
    secret = create_sign_in_link(user=alice.user)
    first, second = Client(), Client()
    assert first.get(f"/sign-in/{secret}/").headers["Location"] == "/"
    assert first.get("/").status_code == 200
    refused = second.get(f"/sign-in/{secret}/")
    assert refused.status_code == 400
    assert b"was used already or has expired" in refused.content
    assert second.get("/").status_code == 302


def test_an_old_sign_in_link_is_refused(client: Client) -> None:
    secret = create_sign_in_link(user=make_actor().user)
    SignInLink.objects.update(expires_at=now() - timedelta(seconds=1))
    assert client.get(f"/sign-in/{secret}/").status_code == 400


def test_signing_out_needs_a_post_and_closes_every_page() -> None:
    browser = sign_in(make_actor())
    assert browser.get("/sign-out/").status_code == 405
    browser.post("/sign-out/")
    assert browser.get("/").status_code == 302
