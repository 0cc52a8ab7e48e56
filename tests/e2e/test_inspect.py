"""inspect-ai, unmodified, against our own door: the command line that docs/evals.md tells."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.live import ROOT, SCRIPTS, Live

pytestmark = pytest.mark.e2e

INSPECT = ROOT / ".venv-inspect" / "bin" / "inspect"
SECONDS = 240


def test_a_task_of_inspect_is_answered_and_scored(live: Live, tmp_path: Path) -> None:
    command = [
        *(str(INSPECT), "eval", "inspect_sums.py"),  # it takes no absolute path
        *("--model", "openai-api/hone/tiny-chatml-1m", "--model-base-url", f"{live.url}/v1"),
        *("-M", f"api_key={live.api_key}", "--max-tokens", "8", "--temperature", "0"),
        *("--display", "plain", "--log-dir", str(tmp_path), "--log-format", "json"),
    ]
    done = subprocess.run(
        command,
        cwd=SCRIPTS,
        env=live.client,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [log] = tmp_path.glob("*.json")
    told = json.loads(log.read_text())
    assert told["status"] == "success", told
    answers = [sample["output"]["choices"][0]["message"]["content"] for sample in told["samples"]]
    right = [
        answer.strip() == sample["target"]
        for answer, sample in zip(answers, told["samples"], strict=True)
    ]
    assert len(right) == 4
    [score] = told["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == sum(right) / 4 >= 0.5
