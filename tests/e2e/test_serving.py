"""Real vLLM behind an installation: it starts when asked, and its death loses nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.live import Live
from tests.e2e.test_recovery import ask, check_whole, launch

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PATIENCE = 300.0  # a start of vLLM is half a minute of a core, and cores are shared
MESSAGES = [{"role": "user", "content": "What is 7 - 5?"}]
LONG = {"max_tokens": 400, "stop": [], "temperature": 1.0}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """What serves is chosen when an installation starts."""
    live = Live(tmp_path_factory.mktemp("vllm"))
    live.environment |= {"HONE_SERVING": "vllm", "HONE_VLLM_CACHE_MIB": "256"}
    live.start()
    yield live
    live.stop()


@pytest.fixture
def api(own: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=own.url, headers={"X-API-Key": own.api_key}, timeout=60) as client:
        yield client


def sample(api: httpx.Client, **params: Any) -> int:
    asked = {"base_model": "tiny-chatml-1m", "messages": MESSAGES, "params": params}
    return int(api.post("/rest/calls", json=asked).raise_for_status().json()["id"])


def wait_for(read: Callable[[], Any], is_there: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not is_there(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def read_answers(api: httpx.Client, calls: list[int]) -> list[Any]:
    found = wait_for(
        lambda: [ask(api, f"/rest/calls/{call}") for call in calls],
        lambda found: all(each["status"] not in ("queued", "running") for each in found),
    )
    assert [each["error"] for each in found] == [""] * len(calls)
    return [each["result"]["sequences"][0]["tokens"] for each in found]


def read_replica(own: Live) -> tuple[str, int]:
    """The start that runs, and its process group."""
    start, pid = own.manage(
        "from webapp.deployments.models import Replica;"
        "replica = Replica.objects.get(engine='vllm'); print(replica.start, replica.pid)"
    ).split()
    return start, int(pid)


def read_stat(own: Live, name: str) -> str:
    """What vLLM says of itself, as its row has it."""
    return own.manage(
        "from webapp.deployments.models import Replica;"
        f"print(Replica.objects.get(engine='vllm').stats.get({name!r}, 0))"
    )


def test_vllm_starts_when_it_is_asked_and_its_death_in_mid_sample_loses_no_request(
    own: Live, api: httpx.Client
) -> None:
    run = launch(api, 60, "while vLLM dies")
    (calm,) = read_answers(api, [sample(api, seed=1, **LONG)])
    start, group = read_replica(own)
    calls = [sample(api, seed=seed, **LONG) for seed in range(1, 9)]
    wait_for(lambda: ask(api, f"/rest/calls/{calls[-1]}")["status"], "queued".__ne__)
    os.killpg(group, signal.SIGKILL)
    answers = read_answers(api, calls)
    assert [len(tokens) for tokens in answers] == [LONG["max_tokens"]] * len(calls)
    assert answers[0] == calm
    assert read_replica(own)[0] != start
    wait_for(lambda: read_stat(own, "sampled_tokens"), "0".__ne__)
    check_whole(api, run, 60)  # its samples came through the adapters of its own steps
