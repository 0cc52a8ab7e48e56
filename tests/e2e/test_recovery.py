"""kill -9 of every process in turn, and of the one that started them: a pause, and nothing else."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import Live, read_report

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SIGNS = {  # of a command line
    "web": "uvicorn",
    "beat": " beat ",
    "cpu": "-Q cpu",
    "gpu": "-Q gpu.",
    "serving": "manage.py serving",
    "sampler": "manage.py sampler",
    "valkey": "valkey-server",
    "server": "workers.generation",
}
KILLED_AT = {
    5: "gpu",
    8: "cpu",
    12: "web",
    16: "serving",
    19: "valkey",
    26: "sampler",
    33: "beat",
    36: "server",
}
PATIENCE = 120.0
END_SECONDS = 60.0
ROWS = "".join(
    json.dumps({"prompt": f"What is {a} - {b}?", "completion": str(a - b)}) + "\n"
    for a in range(10)
    for b in range(10)
)
SAMPLING = {"prompts": ["What is 7 - 5?", "What is 9 - 2?"], "every": 20, "max_tokens": 8}
CONFIG = {
    "rank": 8,
    "learning_rate": 5e-3,
    "batch_size": 16,
    "held_out_share": 0.2,
    "evaluate_every": 20,
    "checkpoint_every": 30,
    "sampling": SAMPLING,
}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Its launcher is killed too, which other tests' installation must be spared."""
    installation = Live(tmp_path_factory.mktemp("own"))
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture
def own(installation: Live) -> Live:
    """Running, also after a test that stopped it."""
    if installation.process.poll() is not None:
        installation.start()
    return installation


@pytest.fixture
def api(own: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=own.url, headers={"X-API-Key": own.api_key}, timeout=60) as client:
        yield client


def find_processes(parent: int) -> dict[str, int]:
    """Everything below a process, by what it is."""
    found: dict[str, int] = {}
    for child in read(parent, f"task/{parent}/children").split():
        line = read(int(child), "cmdline").replace("\0", " ")
        found |= {name: int(child) for name, sign in SIGNS.items() if sign in line}
        found |= find_processes(int(child))
    return found


def read(pid: int, what: str) -> str:
    """Of a process that may have ended meanwhile: nothing then."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{what}").read_text()
    return ""


def find_all_processes(installation: Live) -> dict[str, int]:
    """When the last of them runs: one answers the door before the others have started."""
    deadline = time.monotonic() + PATIENCE
    while len(found := find_processes(installation.process.pid)) < len(SIGNS):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def kill(installation: Live, name: str) -> None:
    """As soon as it runs: one that was killed a moment ago is still being started again."""
    deadline = time.monotonic() + PATIENCE
    while name not in (found := find_processes(installation.process.pid)):
        assert time.monotonic() < deadline, f"{name} does not come back"
        time.sleep(0.1)
    with suppress(ProcessLookupError):  # it went with one that was killed before
        os.kill(found[name], signal.SIGKILL)


def is_alive(pid: int) -> bool:
    return read(pid, "cmdline") != ""


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.1)


def ask(api: httpx.Client, path: str, **query: Any) -> Any:
    """Through a web process that may be killed while it answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return api.get(path, params=query).raise_for_status().json()
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def wait_until(api: httpx.Client, path: str, *statuses: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while (found := ask(api, path))["status"] not in statuses:
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


def launch(api: httpx.Client, steps: int, name: str, **config: Any) -> str:
    """A dashboard's run on a dataset of its own."""
    uploaded = api.post(
        "/rest/dataset-versions", data={"name": name}, files={"file": ("rows.jsonl", ROWS)}
    ).raise_for_status()
    version = uploaded.json()["id"]
    wait_until(api, f"/rest/dataset-versions/{version}", "ready")
    asked = {"base_model": "tiny-chatml-1m", "dataset_version": version, "name": name}
    answer = api.post("/rest/runs", json={**asked, "config": CONFIG | {"steps": steps} | config})
    return str(answer.raise_for_status().json()["id"])


def check_whole(api: httpx.Client, run: str, steps: int) -> list[float]:
    """Every step, sample and checkpoint is there once. Returns the losses."""
    ended = wait_until(api, f"/rest/runs/{run}", "done", "failed", "cancelled")
    assert (ended["status"], ended["error"], ended["step"]) == ("done", "", steps)
    points = ask(api, f"/rest/runs/{run}/metrics")["series"]["loss"]
    assert [point[0] for point in points] == list(range(1, steps + 1))
    names = [found["name"] for found in ask(api, "/rest/checkpoints", run=run)["results"]]
    assert sorted(names) == [f"step-{number:06d}" for number in range(30, steps + 1, 30)]
    expected = [(step, prompt) for step in range(0, steps + 1, 20) for prompt in (0, 1)]
    deadline = time.monotonic() + PATIENCE
    while len(samples := read_samples(api, run)) < len(expected):
        assert time.monotonic() < deadline, samples
        time.sleep(0.3)
    assert samples == expected
    return [point[1] for point in points]


def read_samples(api: httpx.Client, run: str) -> list[tuple[int, int]]:
    found = ask(api, f"/rest/runs/{run}/samples")
    return sorted((each["step"], each["prompt_index"]) for each in found if not each["error"])


def test_any_process_may_be_killed_while_a_program_and_a_run_go_on(
    own: Live, api: httpx.Client
) -> None:
    undisturbed = own.run("loop.py", "40")
    calm = check_whole(api, launch(api, 120, "calm"), 120)
    run = launch(api, 120, "stormy")
    program = own.begin("loop.py", "40")
    assert program.stderr is not None
    for line in program.stderr:
        word, _, number = line.strip().partition(" ")
        if word == "step" and (name := KILLED_AT.get(int(number))):
            kill(own, name)
    assert read_report(program)["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
    assert check_whole(api, run, 120) == pytest.approx(calm, rel=1e-3)


def test_a_run_of_all_weights_is_the_same_to_the_bit_when_its_worker_is_killed(
    own: Live, api: httpx.Client
) -> None:
    curves = []
    for name, killed_at in (("whole and calm", ()), ("whole and stormy", (7, 33))):
        run = launch(api, 60, name, rank=0, learning_rate=1e-3)
        for step in killed_at:
            while ask(api, f"/rest/runs/{run}")["step"] < step:
                time.sleep(0.05)
            kill(own, "gpu")
        curves.append(check_whole(api, run, 60))
    assert curves[0] == curves[1]


def test_a_killed_launcher_leaves_no_process_and_the_next_start_goes_on(
    own: Live, api: httpx.Client
) -> None:
    run = launch(api, 120, "goes on")
    while ask(api, f"/rest/runs/{run}")["step"] < 20:
        time.sleep(0.1)
    pids = list(find_all_processes(own).values())
    own.process.kill()
    own.process.wait()
    own.start()
    wait_until_gone(pids)
    check_whole(api, run, 120)


def test_ctrl_c_ends_every_process(own: Live) -> None:
    pids = list(find_all_processes(own).values())
    own.process.send_signal(signal.SIGINT)
    assert own.process.wait(END_SECONDS) == 0
    wait_until_gone(pids)
    assert own.log.read_text().endswith("Stopping every process ...\nStopped.\n")
