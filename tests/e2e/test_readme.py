"""What the README says is what works: its programs are run as they stand there."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import ENDED, ROOT, SDK_PYTHON, Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

README = (ROOT / "README.md").read_text()
DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROW = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}


def find_block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    found = [block for block in blocks if containing in block]
    assert len(found) == 1
    return str(found[0]).replace(DEMO_MODEL, "tiny-chatml-1m")


def client_environment(live: Live) -> dict[str, str]:
    where = {"TINKER_BASE_URL": live.url, "TINKER_API_KEY": live.api_key}
    return live.environment | where | {"HF_HUB_OFFLINE": "1"}


def test_its_sdk_program_sees_the_loss_fall(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(find_block("python", "import tinker"))
    finished = subprocess.run(
        [str(SDK_PYTHON), "-W", "ignore", str(ENDED), str(program)],
        env=client_environment(live),
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    losses = [float(line) for line in finished.stdout.split()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_its_three_curl_calls_launch_a_run(live: Live, tmp_path: Path) -> None:
    """Only the ids are filled in: each is told by the call before."""
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(ROW)] * 12))
    upload, look, launch = find_block("sh", "dataset-versions").split("\ncurl")
    version = call(live, tmp_path, upload)["id"]
    deadline = time.monotonic() + 120
    while call(live, tmp_path, fill_in(f"curl{look}", version))["status"] != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run = call(live, tmp_path, fill_in(f"curl{launch}", version))
    assert (run["status"], run["origin"]) == ("queued", "rest")
    answer = httpx.post(
        f"{live.url}/rest/runs/{run['id']}/stop", headers={"X-API-Key": live.api_key}, timeout=60
    )
    assert answer.status_code == 200


def test_its_question_in_openais_words_is_answered(live: Live, tmp_path: Path) -> None:
    answer = call(live, tmp_path, find_block("sh", "/v1/chat/completions"))
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny-chatml-1m")
    assert answer["usage"]["completion_tokens"] > 0


def fill_in(command: str, version: object) -> str:
    return command.replace("dsv-...", str(version)).partition("#")[0].rstrip()


def call(live: Live, folder: Path, command: str) -> dict[str, Any]:
    finished = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS ")],
        cwd=folder,
        env=client_environment(live),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer: dict[str, Any] = json.loads(finished.stdout)
    assert "error" not in answer or not answer["error"], answer
    return answer
