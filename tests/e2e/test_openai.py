"""OpenAI's own client, unmodified, against an installation."""

from typing import Any

import pytest

from tests.e2e.live import ROOT, Live

pytestmark = pytest.mark.e2e

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"  # vLLM brings OpenAI's client with it


@pytest.fixture(scope="module")
def report(live: Live) -> dict[str, Any]:
    environment = {"OPENAI_BASE_URL": f"{live.url}/v1", "OPENAI_API_KEY": live.api_key}
    told: dict[str, Any] = live.run("openai_client.py", python=PYTHON, **environment)
    return told


def test_the_client_lists_and_finds_models(report: dict[str, Any]) -> None:
    assert report["models"][0] == "tiny-chatml-1m" == report["model"]


def test_what_is_streamed_is_what_comes_whole(report: dict[str, Any]) -> None:
    completions, chat = report["completions"], report["chat"]
    assert completions["streamed"] == completions["whole"]
    assert sum(completions["num_logprobs"]) == completions["usage"]
    assert chat["streamed"] == chat["whole"] == "7"
    assert chat["likely"][0] == "7"
    assert chat["usage"][0] == chat["usage"][1]


def test_many_questions_at_once_are_answered_each_with_its_own(report: dict[str, Any]) -> None:
    right = [str(a + 2) for a in range(1, 8)]
    assert sum(map(str.__eq__, report["many"], right)) >= 5


def test_refusals_reach_the_client_as_its_own_errors(report: dict[str, Any]) -> None:
    assert report["unknown"]["kind"] == "NotFoundError"
    assert report["suffix"] == {
        "kind": "BadRequestError",
        "param": "suffix",
        "text": report["suffix"]["text"],
    }
    assert "suffix is not supported" in report["suffix"]["text"]
    assert report["key"] == {"status": 401, "code": "invalid_api_key"}
