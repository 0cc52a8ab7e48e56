"""Who may come in, and which account is whose."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_base_model, make_viewer
from tests.webapp.firetitan.conftest import Program
from webapp.accounts.tokens import make_token
from webapp.core.errors import NotFound
from webapp.core.slashes import SingleSlashes
from webapp.firetitan.names import find_base_model
from webapp.fleet.models import BaseModel


def test_a_key_has_exactly_one_account(program: Program) -> None:
    answer = program.read("/v1/accounts?pageSize=2")
    assert [each["name"] for each in answer["accounts"]] == [f"accounts/{program.account}"]
    assert answer["nextPageToken"] == ""


def test_either_header_opens_with_a_key_in_either_spelling_or_a_token(program: Program) -> None:
    token = make_token(program.key)
    as_theirs = f"fw_{program.secret.removeprefix('tml-')}"
    for headers in (
        {"X-Api-Key": as_theirs},
        {"X-Api-Key": program.secret},
        {"Authorization": f"Bearer {program.secret}"},
        {"Authorization": f"Bearer {token}"},
    ):
        assert Client().get("/v1/accounts", headers=headers).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "tml-wrong"}, {"Authorization": "Basic x"}])
def test_without_a_key_the_answer_is_unauthenticated(headers: dict[str, str]) -> None:
    response = Client().get("/v1/accounts", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, 16)
    assert "FIREWORKS_API_KEY" in response.json()["message"]


def test_another_account_does_not_exist(program: Program, stranger: Program) -> None:
    answer = program.read(f"/v1/accounts/{stranger.account}")
    assert (program.status, answer["code"]) == (404, 5)
    assert answer["details"] == []


def test_an_unknown_path_is_a_404_in_the_same_shape(program: Program) -> None:
    for path in ("/v1/accounts/x/nothing", "/training/v1/nothing", "/hot_load/v2"):
        answer = program.read(path)
        assert (program.status, answer["code"]) == (404, 5)


def test_another_method_is_refused(program: Program) -> None:
    program.delete("/v1/accounts")
    assert program.status == 405


def test_a_viewer_reads_only(program: Program) -> None:
    viewer = Program(make_viewer(program.actor))
    viewer.read("/v1/accounts")
    assert viewer.status == 200


async def test_two_slashes_are_one_but_not_in_pages() -> None:
    seen = []

    async def app(scope: dict[str, Any], _receive: Any, _send: Any) -> None:
        seen.append(scope["path"])

    for path in ("//hot_load/v1//models", "/v1//accounts", "//runs"):
        await SingleSlashes(app)({"path": path}, None, None)  # type: ignore[arg-type]
    assert seen == ["/hot_load/v1/models", "/v1/accounts", "//runs"]


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-0.5B",
        "accounts/fireworks/models/qwen2p5-0p5b",
        "accounts/fireworks/models/qwen2-5-0-5b",
        "accounts/acme/models/Qwen2.5-0.5B",
    ],
)
def test_a_base_model_is_found_by_the_last_part_of_its_resource_name(db: None, name: str) -> None:
    wanted = make_base_model("Qwen/Qwen2.5-0.5B")
    make_base_model()
    assert find_base_model(name) == wanted


def test_an_unknown_base_model_is_named_with_what_there_is(base_model: BaseModel) -> None:
    with pytest.raises(NotFound, match=r"qwen3-8b.*tiny-chatml-1m"):
        find_base_model("accounts/fireworks/models/qwen3-8b")
