"""Tokens stand for a key: everywhere, for an hour, and no longer than the key itself."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_viewer
from tests.webapp.tinker.conftest import Program
from tests.webapp.tinker.test_futures import ask, close
from webapp.accounts import tokens
from webapp.accounts.credentials import find_actor, forget_actors
from webapp.accounts.models import ApiKey, Membership, Role
from webapp.accounts.services import find_actor_of_key
from webapp.wire.waiting import ParkedPolls

CHALLENGE = 'Bearer error="invalid_token"'


def exchange(program: Program) -> str:
    return str(program.post("auth/token")["jwt"])


def read_claims(token: str) -> dict[str, Any]:
    """As the SDK reads them: without a look at the signature."""
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


def call(secret: str, path: str = "sessions") -> Any:
    forget_actors()
    return Client().get(f"/api/v1/{path}", headers={"X-API-Key": secret})


def test_a_token_says_whose_it_is_and_for_how_long(program: Program) -> None:
    claims = read_claims(exchange(program))
    user, project = program.actor.user, program.actor.project
    assert claims["exp"] - claims["iat"] == 3600
    assert abs(claims["iat"] - now().timestamp()) < 60
    assert (claims["sub"], claims["org_id"]) == (f"hone:user:{user.pk}", project.pk)
    assert claims["email"] == user.email


def test_a_token_opens_what_its_key_opens(program: Program, stranger: Program) -> None:
    session_id = program.open_session()
    token = exchange(program)
    assert call(token).json()["sessions"] == [session_id]
    assert call(exchange(stranger)).json()["sessions"] == []
    rest = Client().get("/rest/me", headers={"X-API-Key": token})
    assert rest.json()["project"] == program.actor.project.pk


def test_a_token_ends_with_its_key(program: Program) -> None:
    token = exchange(program)
    ApiKey.objects.update(revoked_at=now())
    answer = call(token)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, CHALLENGE)


def test_a_token_ends_with_its_users_membership(program: Program) -> None:
    token = exchange(program)
    Membership.objects.update(role=Role.VIEWER)
    actor = find_actor_of_key(token)
    assert actor is not None
    assert not actor.can_write
    Membership.objects.all().delete()
    assert find_actor_of_key(token) is None


def test_an_expired_token_is_told_to_be_exchanged(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LIFETIME", timedelta(seconds=-1))
    answer = call(exchange(program))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, CHALLENGE)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-4] + "AAAA",
        lambda token: token + "x",
        lambda token: token.rpartition(".")[0] + ".",
        lambda token: jwt.encode(read_claims(token), "k" * 32, algorithm="HS256"),
        lambda token: jwt.encode(read_claims(token), None, algorithm="none"),
        lambda token: "eyJ",
        lambda token: "eyJ" + "a" * 10_000,
    ],
)
def test_a_forged_token_opens_nothing(program: Program, change: Any) -> None:
    answer = call(change(exchange(program)))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, CHALLENGE)


def test_a_token_without_our_claims_opens_nothing(program: Program) -> None:
    claims = {"iat": 1, "exp": 9e9, "key": program.key.pk}
    secret = tokens._derive_secret()
    for missing in ({}, {"iss": "other"}):
        assert call(jwt.encode(claims | missing, secret, algorithm="HS256")).status_code == 401


def test_a_token_cannot_be_made_to_last_longer_by_itself(program: Program) -> None:
    first = exchange(program)
    soon = datetime.now(UTC) + timedelta(minutes=10)
    short = tokens.make_token(program.key, until=soon)
    program.secret = short
    assert read_claims(exchange(program))["exp"] == read_claims(short)["exp"]
    assert read_claims(short)["exp"] < read_claims(first)["exp"]


def test_the_programs_of_one_key_are_looked_up_as_one(
    program: Program, django_assert_num_queries: Any
) -> None:
    many = [tokens.make_token(program.key) for _ in range(20)]
    forget_actors()
    assert find_actor(many[0]) is not None
    with django_assert_num_queries(0):
        assert all(find_actor(token) for token in many)
        assert find_actor(many[0][:-4] + "AAAA") is None


def test_a_remembered_token_still_expires(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_actor(exchange(program)) is not None
    monkeypatch.setattr(tokens, "LIFETIME", timedelta(seconds=-1))
    assert find_actor(tokens.make_token(program.key)) is None


def test_a_viewer_exchanges_and_gives_up_their_key(program: Program) -> None:
    viewer = Program(make_viewer(program.actor))
    viewer.secret = exchange(viewer)
    assert viewer.status == 200
    viewer.send("DELETE", "auth/apikey/me", {})
    assert viewer.status == 204
    viewer.key.refresh_from_db()
    program.key.refresh_from_db()
    assert viewer.key.revoked_at is not None
    assert program.key.revoked_at is None


def test_a_key_is_described_as_the_cli_keeps_it(program: Program) -> None:
    answer = program.read("auth/apikey/me")
    assert isinstance(answer.pop("key_id"), int)
    project = program.actor.project.name
    details = {"org_details": {"name": project}, "user_details": {"email": "alice"}}
    assert answer == {"name": "test", "note": "", "details": details}
    program.secret = "tml-wrong"
    assert "unknown or was revoked" in program.read("auth/apikey/me")["detail"]


@pytest.mark.django_db(transaction=True)
async def test_polls_take_tokens_too(program: Program) -> None:
    polls = ParkedPolls(hold_seconds=1)
    program.secret = tokens.make_token(program.key)
    assert (await ask(polls, program, b'{"request_id": "op-1"}'))[0] == 404
    program.secret = program.secret[:-4] + "AAAA"
    assert (await ask(polls, program, b'{"request_id": "op-1"}'))[0] == 401
    await close(polls)
