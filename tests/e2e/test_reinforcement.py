"""Reinforcement learning without code: from the form, over REST, and as the exported program."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import TORCH_PYTHON, Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING_MS = 240_000
STEPS = 20
# Every sixth sum of two digits: the tiny model answers three of four right at temperature 1.
SUMS = [divmod(number, 10) for number in range(0, 100, 6)]
ROWS = [{"prompt": f"What is {a} + {b}?", "target": str(a + b)} for a, b in SUMS]
CONFIG: dict[str, Any] = {
    "rank": 8,
    "learning_rate": 0.002,
    "warmup_steps": 8,
    "train_unembed": True,
    "batch_size": 16,
    "group_size": 16,
    "max_tokens": 6,
    "steps": STEPS,
    "held_out_share": 0,
    "evaluate_every": 0,
    "loss": "ppo",
    "graders": [{"name": "exact_match"}],
    "sampling": {"every": 0},
}


@pytest.fixture
def rest(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


def upload(rest: httpx.Client, page: Page) -> str:
    content = "\n".join(json.dumps(row) for row in ROWS)
    files = {"file": ("sums.jsonl", content)}
    version = rest.post("/rest/dataset-versions", data={"name": "sums"}, files=files).json()
    path = f"/rest/dataset-versions/{version['id']}"
    while rest.get(path).json()["status"] == "validating":
        page.wait_for_timeout(200)
    return str(version["id"])


def read_rewards(rest: httpx.Client, run_id: str) -> list[float]:
    series = rest.get(f"/rest/runs/{run_id}/metrics").json()["series"]
    return [value for _, value, _ in series["reward/mean"]]


def check_rise(rewards: list[float]) -> None:
    """Means of 1,024 answers each, with a standard error below 0.014: six of them apart."""
    assert len(rewards) == STEPS
    assert fmean(rewards[-4:]) > fmean(rewards[:4]) + 0.085


def test_a_policy_learns_from_its_rewards_launched_from_the_form(
    page: Page, rest: httpx.Client, tmp_path: Path
) -> None:
    version = upload(rest, page)
    page.goto(f"/runs/new/?method=rl&dataset_version={version}")
    fill_form(page)
    check_page(page)
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="Rewarded sums")).to_be_visible()
    run_id = page.url.rstrip("/").split("/")[-1]
    expect(page.locator("#run-actions").get_by_text("done")).to_be_visible(timeout=TRAINING_MS)
    check_rise(read_rewards(rest, run_id))
    look_at_rollouts(page)


def fill_form(page: Page) -> None:
    page.get_by_label("Name").fill("Rewarded sums")
    page.get_by_label("Train for").fill(str(STEPS))
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Batch size").fill("16")
    page.get_by_label("Learning rate").fill("0.002")
    page.get_by_label("Group size").fill("16")
    page.get_by_label("Longest rollout").fill("6")
    page.get_by_label("Loss", exact=True).select_option("ppo")
    page.get_by_label("Sample every").fill("0")
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_label("LoRA rank").fill("8")
    page.get_by_label("Output head").check()
    page.get_by_label("Warm-up").fill("8")
    page.get_by_label("Held-out share").fill("0")
    page.get_by_label("Held-out loss every").fill("0")


def look_at_rollouts(page: Page) -> None:
    page.get_by_role("navigation", name="Run").get_by_role("link", name="Rollouts").click()
    expect(page.get_by_text(f"Step {STEPS}", exact=True)).to_be_visible(timeout=20_000)
    groups = page.get_by_role("region", name=re.compile("group"))
    expect(groups).to_have_count(6)
    check_page(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text(f"Step {STEPS - 1}", exact=True)).to_be_visible(timeout=20_000)
    page.get_by_role("button", name=re.compile("Tokens of answer")).first.click()
    expect(page.locator("#tokens .token").first).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Which steps").select_option("all")
    page.get_by_label("Which answers").select_option("below")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text(re.compile("answers? match"))).to_be_visible(timeout=20_000)


def run_program(live: Live, program: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """With the unmodified SDK, and jinja2 for the chat template; what it says at each step."""
    finished = subprocess.run(
        [str(TORCH_PYTHON), "-W", "ignore", "-c", program],
        env=live.client,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_the_same_over_rest_and_as_the_exported_program(
    page: Page, live: Live, rest: httpx.Client, tmp_path: Path
) -> None:
    body = {
        "name": "over REST",
        "recipe": "rl",
        "base_model": "tiny-chatml-1m",
        "dataset_version": upload(rest, page),
        "config": CONFIG,
    }
    answer = rest.post("/rest/runs", json=body)
    assert answer.status_code == 201, answer.text
    run_id = answer.json()["id"]
    while (run := rest.get(f"/rest/runs/{run_id}").json())["status"] in ("queued", "running"):
        page.wait_for_timeout(500)
    assert (run["status"], run["error"]) == ("done", "")
    check_rise(read_rewards(rest, run_id))
    answers = rest.get(f"/rest/runs/{run_id}/rollouts?step={STEPS}&page_size=200").json()
    assert {each["digest"] for each in answers["results"]} != {""}

    page.goto(f"/runs/{run_id}/?tab=config")
    program = page.locator("pre", has_text="import tinker").inner_text()
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    told = run_program(live, program, tmp_path)
    check_rise([each["reward"] for each in told])


def test_games_are_played_from_the_form_over_rest_and_by_the_exported_program(
    page: Page, live: Live, rest: httpx.Client
) -> None:
    page.goto("/runs/new/?method=self_play")
    page.get_by_label("Name").fill("Plays Nim")
    page.get_by_label("Train for").fill("3")
    page.get_by_label("Games of an evaluation").fill("8")
    page.get_by_label("Sample every").fill("0")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="Plays Nim")).to_be_visible(timeout=20_000)
    expect(page.locator("#run-actions").get_by_text("done")).to_be_visible(timeout=TRAINING_MS)
    config = {"steps": 2, "batch_size": 4, "group_size": 4, "eval_games": 4}
    body = {"recipe": "self_play", "base_model": "tiny-chatml-1m", "config": config}
    answer = rest.post("/rest/runs", json=body)
    assert answer.status_code == 201, answer.text
    run_id = answer.json()["id"]
    while (run := rest.get(f"/rest/runs/{run_id}").json())["status"] in ("queued", "running"):
        page.wait_for_timeout(500)
    assert (run["status"], run["error"]) == ("done", "")
    series = rest.get(f"/rest/runs/{run_id}/metrics").json()["series"]
    assert len(series["win_rate/random"]) == 1
    page.goto(f"/runs/{run_id}/?tab=config")
    program = page.locator("pre", has_text="import tinker").inner_text()
    told = run_program(live, program)
    first = rest.get(f"/rest/runs/{run_id}/rollouts?step=1&page_size=200").json()["results"]
    # At the first step the weights are the same, and so are the games.
    assert (told[0]["step"], told[0]["turns"]) == (1, len(first))
