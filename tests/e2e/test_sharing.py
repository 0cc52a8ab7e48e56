"""The unmodified SDK: weights that others use, and sampling clients that follow a run."""

import time
from typing import Any

import pytest

from tests.e2e.live import Live
from tests.e2e.test_sdk import OTHER_PROJECT

pytestmark = pytest.mark.e2e

ARCHIVE = """
from webapp.accounts.models import ApiKey
from webapp.accounts.services import create_project
print(create_project(user=ApiKey.objects.earliest('created_at').user, name='archive').pk)
"""


@pytest.fixture(scope="module")
def told(live: Live) -> Any:
    strangers_key = live.manage(OTHER_PROJECT.format(name=f"sharon{time.time_ns()}"))
    return live.run("sharing.py", live.manage(ARCHIVE), strangers_key)


def test_others_load_what_is_public_or_with_a_key_of_its_project(told: Any) -> None:
    assert told["with_key"] == pytest.approx(told["scored"], abs=1e-5)
    assert told["public"] == pytest.approx(told["scored"], abs=1e-5)
    for refused in (told["hidden"], told["hidden_again"]):
        assert f"There is no checkpoint {told['saved']}" in refused
    assert told["base_model"] == "tiny-chatml-1m"


def test_copies_have_paths_of_their_own(told: Any) -> None:
    paths = {told["saved"], told["copied"], told["copied_by_project"]}
    assert len(paths) == 3
    assert {path.split("/", 3)[3] for path in paths} == {"weights/final"}


def test_inflight_clients_follow_and_a_snapshot_stays(told: Any) -> None:
    assert told["before"] == pytest.approx(told["snapshot"], abs=1e-4)
    assert told["early"] == pytest.approx(told["late"], abs=1e-4)
    differences = [abs(a - b) for a, b in zip(told["early"], told["snapshot"], strict=True)]
    assert max(differences) > 1e-3
