"""Methods that need no code, in the whole product: from the form, over REST, and as programs."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import TORCH_PYTHON, Live
from tests.training.recipes.pairs import differences_over_sums
from training.data.rows import Row
from training.data.validate import dump_row

pytestmark = pytest.mark.e2e

RUN_SECONDS = 300
PROGRAM_SECONDS = 240
# What the tiny model prefers at first is the sum: it was never taught to subtract.
DPO = {
    "rank": 8,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "batch_size": 8,
    "steps": 16,
    "held_out_share": 0.2,
    "evaluate_every": 8,
    "sampling": {"every": 0},
}
REWARD_MODEL = DPO | {
    "rank": 16,
    "learning_rate": 3e-3,
    "schedule": "linear",
    "steps": 60,
    "evaluate_every": 20,
}


@pytest.fixture
def rest(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


def upload(rest: httpx.Client, name: str, content: bytes) -> str:
    files = {"file": (f"{name}.jsonl", content)}
    version = rest.post("/rest/dataset-versions", data={"name": name}, files=files).json()
    path = f"/rest/dataset-versions/{version['id']}"
    return str(wait_for(rest, path, "validating", "needs_decision")["id"])


def wait_for(rest: httpx.Client, path: str, *moving: str) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_SECONDS
    while (found := rest.get(path).json())["status"] in moving:
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return dict(found)


def finish(rest: httpx.Client, run_id: str) -> dict[str, Any]:
    run = wait_for(rest, f"/rest/runs/{run_id}", "queued", "running")
    assert (run["status"], run["error"]) == ("done", "")
    return run


def read_curve(rest: httpx.Client, run_id: str, key: str) -> dict[int, float]:
    points = rest.get(f"/rest/runs/{run_id}/metrics", params={"key": key}).json()["series"]
    return {step: value for step, value, _ in points[key]}


def launch(rest: httpx.Client, recipe: str, version: str, config: dict[str, Any]) -> str:
    body = {"recipe": recipe, "base_model": "tiny-chatml-1m", "dataset_version": version}
    answer = rest.post("/rest/runs", json={**body, "config": config})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def run_program(page: Page, live: Live, run_id: str, folder: Path) -> list[dict[str, Any]]:
    """What the run's page offers as the same in Python, as its user runs it."""
    page.goto(f"/runs/{run_id}/?tab=config")
    script = page.locator("pre", has_text="pip install tinker").first.text_content() or ""
    (folder / "program.py").write_text(script)
    finished = subprocess.run(
        [str(TORCH_PYTHON), "program.py"],
        cwd=folder,
        env=live.client,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


PAIRS = b"".join(dump_row(row) for row in differences_over_sums())
ANSWERS = b"".join(
    dump_row(Row(number=1, messages=[*row.messages, *row.metadata["chosen"]]))
    for row in differences_over_sums()
)


def test_preferences_are_learned_from_the_form_and_by_the_program_it_exports(
    page: Page, live: Live, rest: httpx.Client, tmp_path: Path
) -> None:
    version = upload(rest, "pairs", PAIRS)
    upload(rest, "answers", ANSWERS)
    page.goto("/runs/new/?method=sft")
    page.get_by_label("Name").fill("Prefers differences")
    page.get_by_role("link", name=re.compile("^DPO")).click()
    expect(page.get_by_label("Beta")).to_have_value("0.1")
    expect(page.get_by_label("Name")).to_have_value("Prefers differences")
    fill_dpo(page, version)
    check_page(page)
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="Prefers differences")).to_be_visible(timeout=20_000)
    run_id = page.url.rstrip("/").split("/")[-1]
    run = finish(rest, run_id)
    assert (run["recipe"], run["origin"], run["config"]["beta"]) == ("dpo", "browser", 0.1)
    preferred = read_curve(rest, run_id, "held_out/preferred")
    assert preferred[0] < 0.2
    assert preferred[16] > 0.8
    assert read_curve(rest, run_id, "held_out/accuracy")[16] > 0.9
    told = run_program(page, live, run_id, tmp_path)
    losses = read_curve(rest, run_id, "dpo/loss")
    assert {each["step"]: each["dpo/loss"] for each in told} == pytest.approx(losses, abs=2e-3)
    assert told[-1]["held_out/accuracy"] > 0.9


def test_preferences_are_launched_over_rest(rest: httpx.Client) -> None:
    version = upload(rest, "pairs over REST", PAIRS)
    config = DPO | {"steps": 2, "evaluate_every": 0}
    run = finish(rest, launch(rest, "dpo", version, config))
    assert (run["recipe"], run["origin"], run["step"]) == ("dpo", "rest", 2)


def fill_dpo(page: Page, version: str) -> None:
    page.get_by_label("Dataset", exact=True).select_option(version)
    page.get_by_label("Train for").fill(str(DPO["steps"]))
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Learning rate").fill(str(DPO["learning_rate"]))
    page.get_by_label("Sample every").fill("0")
    page.get_by_text("Advanced").click()
    page.get_by_label("LoRA rank").fill(str(DPO["rank"]))
    page.get_by_label("Schedule").select_option("constant")
    page.get_by_label("Held-out share").fill(str(DPO["held_out_share"]))
    page.get_by_label("Measure held-out pairs every").fill(str(DPO["evaluate_every"]))


def test_a_reward_model_learns_to_choose_and_rest_and_form_launch_it(
    page: Page, rest: httpx.Client
) -> None:
    version = upload(rest, "choices", PAIRS)
    run_id = launch(rest, "reward_model", version, REWARD_MODEL)
    finish(rest, run_id)
    accuracy = read_curve(rest, run_id, "held_out/accuracy")
    assert accuracy[0] == pytest.approx(0.5, abs=0.1)
    assert accuracy[60] > 0.8
    losses = read_curve(rest, run_id, "held_out_loss")
    assert losses[60] < losses[0] / 4
    page.goto(f"/runs/new/?method=reward_model&version={version}")
    page.get_by_label("Name").fill("A judge")
    page.get_by_label("Train for").fill("2")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="A judge")).to_be_visible(timeout=20_000)
    run = finish(rest, page.url.rstrip("/").split("/")[-1])
    assert (run["recipe"], run["step"]) == ("reward_model", 2)
    # Its pinned prompts are comparisons of pairs that it does not learn from.
    asked = run["config"]["sampling"]["prompts"][0][0]["content"]
    assert asked.endswith("Which answer is better, A or B?")


def test_the_program_of_a_supervised_run_has_its_losses(
    page: Page, live: Live, rest: httpx.Client, tmp_path: Path
) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {number} twice."},
                {"role": "assistant", "content": f"{number} é"},
                {"role": "user", "content": "Again."},
                {"role": "assistant", "content": f"{number} {number}"},
            ]
        }
        for number in range(24)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    version = upload(rest, "twice", content)
    config = DPO | {"steps": 9, "warmup_steps": 2, "schedule": "cosine", "batch_size": 5, "seed": 3}
    run_id = launch(rest, "sft", version, config)
    finish(rest, run_id)
    told = run_program(page, live, run_id, tmp_path)
    losses = read_curve(rest, run_id, "loss")
    assert {each["step"]: each["loss"] for each in told} == pytest.approx(losses, rel=2e-3)
    held_out = read_curve(rest, run_id, "held_out_loss")
    assert told[7]["held_out_loss"] == pytest.approx(held_out[8], rel=2e-3)


def test_rlhf_runs_its_three_stages_one_after_the_other(page: Page, rest: httpx.Client) -> None:
    rows = list(differences_over_sums())
    prompts = [{"messages": row.messages, "target": str(row.number)} for row in rows]
    contents = {"rl": write(prompts), "sft": ANSWERS, "reward_model": PAIRS}
    versions = {recipe: upload(rest, f"for {recipe}", each) for recipe, each in contents.items()}
    page.goto("/runs/new/rlhf/")
    page.get_by_label("Name").fill("From feedback")
    page.get_by_label("LoRA rank").fill("4")
    for recipe, version in versions.items():
        page.locator(f"select[name={recipe}_dataset_version]").select_option(version)
        page.locator(f"input[name={recipe}_steps]").fill("2")
        page.locator(f"input[name={recipe}_batch_size]").fill("2")
    page.locator("input[name=rl_group_size]").fill("2")
    page.locator("input[name=rl_max_tokens]").fill("4")
    check_page(page)
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="From feedback")).to_be_visible(timeout=20_000)
    group = page.url.rstrip("/").split("/")[-1]
    runs = {run["recipe"]: run for run in rest.get(f"/rest/run-groups/{group}").json()["runs"]}
    ended = {recipe: finish(rest, runs[recipe]["id"]) for recipe in contents}
    policy = ended["rl"]
    assert policy["parent"] == find_last(rest, ended["sft"]["id"])
    judge = find_last(rest, ended["reward_model"]["id"])
    assert policy["config"]["graders"][0]["checkpoint"] == judge
    assert policy["started_at"] >= ended["reward_model"]["ended_at"]
    # The same over REST; stopped at once, none of the three goes on.
    stages = {
        recipe: {"dataset_version": version, "config": {"rank": 4}}
        for recipe, version in versions.items()
    }
    answer = rest.post("/rest/rlhf", json={"base_model": "tiny-chatml-1m", **stages})
    assert answer.status_code == 201, answer.text
    rest.post(f"/rest/run-groups/{answer.json()['id']}/stop")
    for run in answer.json()["runs"]:
        over = wait_for(rest, f"/rest/runs/{run['id']}", "queued", "running")
        assert over["status"] in ("cancelled", "failed")


def write(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def find_last(rest: httpx.Client, run_id: str) -> str:
    saved = rest.get("/rest/checkpoints", params={"run": run_id}).json()["results"]
    training = [each for each in saved if each["kind"] == "training" and each["run"] == run_id]
    return str(max(training, key=lambda each: int(each["step"]))["id"])
