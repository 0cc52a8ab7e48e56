"""A run of all weights from the browser to what it is for: learned, saved, served, gone on with."""

import io
import json
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from playwright.sync_api import Page, expect
from transformers import AutoModelForCausalLM

from tests.e2e.live import Live
from tests.e2e.test_dashboard import ROWS, TRAINING_MS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = "tiny-chatml-1m"
NUM_STEPS = 60
PROMPT = "What is 7 - 5?"
NUM_LEARNED = 78  # of the 100 rows: one step learns from all of them
TYPES = """
import json
from webapp.checkpoints.models import Checkpoint
rows = Checkpoint.objects.filter(run__{column}='{value}').order_by('seq')
print(json.dumps([(c.name, c.kind, c.type, c.ratio, c.previous and c.previous.name) for c in rows]))
"""


@pytest.fixture(scope="module")
def api(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def version_id(api: httpx.Client) -> str:
    content = "\n".join(json.dumps(row) for row in ROWS)
    files = {"file": ("rows.jsonl", content)}
    version = api.post("/rest/dataset-versions", data={"name": "all of it"}, files=files).json()
    wait_for(api, f"/rest/dataset-versions/{version['id']}", "ready")
    return str(version["id"])


def wait_for(api: httpx.Client, path: str, *statuses: str) -> Any:
    deadline = time.monotonic() + TRAINING_MS / 1000
    while (found := api.get(path).json())["status"] not in statuses:
        assert found["status"] not in ("failed", "cancelled"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def run(page: Page, api: httpx.Client, version_id: str) -> Any:
    """Launched by its form, and at its end."""
    page.goto(f"/runs/new/?version={version_id}")
    expect(page.get_by_label("Learning rate")).to_have_value("0.001")
    page.get_by_label("All weights").check()
    expect(page.get_by_label("Learning rate")).to_have_value("0.0001")
    page.get_by_label("Name").fill("All of it")
    page.get_by_label("Train for").fill(str(NUM_STEPS))
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Batch size").fill(str(NUM_LEARNED))
    page.get_by_label("Learning rate").fill("0.002")
    page.get_by_label("Pinned prompts").fill(PROMPT)
    page.get_by_label("Sample every").fill("15")
    page.get_by_label("Longest answer").fill("8")
    page.get_by_text("Advanced").click()
    expect(page.get_by_label("LoRA rank")).to_be_hidden()
    page.get_by_label("Schedule").select_option("constant")
    page.get_by_label("Held-out share").fill("0.2")
    page.get_by_label("Held-out loss every").fill("30")
    page.get_by_label("Checkpoint every").fill("20")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_text("all weights", exact=True)).to_be_visible()
    run_id = page.url.rstrip("/").split("/")[-1]
    return wait_for(api, f"/rest/runs/{run_id}", "done")


def read_curve(api: httpx.Client, run_id: str, key: str = "loss") -> list[float]:
    series = api.get(f"/rest/runs/{run_id}/metrics", params={"key": key}).json()["series"]
    return [value for _, value, _ in series[key]]


def find_checkpoint(api: httpx.Client, run_id: str, name: str) -> Any:
    found = api.get("/rest/checkpoints", params={"run": run_id}).json()["results"]
    return next(each for each in found if each["name"] == name)


def wait_for_samples(api: httpx.Client, run_id: str, number: int) -> list[Any]:
    """The last ones are made when the run has ended already."""
    deadline = time.monotonic() + 180
    while len(samples := api.get(f"/rest/runs/{run_id}/samples").json()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return list(samples)


def test_it_learns_and_answers_its_prompts_on_the_way(api: httpx.Client, run: Any) -> None:
    losses = read_curve(api, run["id"])
    assert len(losses) == NUM_STEPS
    assert sum(losses[-5:]) < sum(losses[:5]) / 3
    held_out = read_curve(api, run["id"], "held_out_loss")
    assert len(held_out) == 2
    samples = wait_for_samples(api, run["id"], 5)
    assert sorted({each["step"] for each in samples}) == [0, 15, 30, 45, 60]
    assert not [each["error"] for each in samples if each["error"]]


def test_it_saves_whole_models_to_go_on_from_and_differences_to_sample_from(
    live: Live, run: Any
) -> None:
    rows = json.loads(live.manage(TYPES.format(column="pk", value=run["id"])))
    training = [kind for _, role, kind, _, _ in rows if role == "training"]
    sampler = [(kind, ratio) for _, role, kind, ratio, _ in rows if role == "sampler"]
    assert training == ["base"] * 3
    assert "delta" in {kind for kind, _ in sampler}
    assert all(0 < ratio < 1 for kind, ratio in sampler if kind == "delta")


def test_its_checkpoint_is_served_with_proof_and_answers_in_the_playground(
    page: Page, api: httpx.Client, run: Any
) -> None:
    saved = find_checkpoint(api, run["id"], f"step-{NUM_STEPS:06d}")
    assert (saved["rank"], saved["type"], saved["has_optimizer"]) == (0, "base", True)
    page.goto(f"/checkpoints/{saved['id']}/")
    page.get_by_role("link", name="Serve").first.click()
    page.get_by_label("Name").fill(f"all-of-it-{time.time_ns()}")
    page.get_by_role("button", name="Serve").click()
    expect(page.get_by_text(re.compile("agree on"))).to_be_visible(timeout=60_000)
    expect(page.get_by_text("ready", exact=True).first).to_be_visible(timeout=60_000)
    page.goto(f"/playground/?left={saved['id']}")
    page.locator("textarea[name=prompt]").fill(PROMPT)
    page.get_by_role("button", name=re.compile("Ask|Send")).click()
    at_its_end = wait_for_samples(api, run["id"], 5)[-1]
    assert (at_its_end["step"], at_its_end["prompt"][0]["content"]) == (NUM_STEPS, PROMPT)
    answer = page.locator(".pane").first.locator(".as-text").last
    # As it is seen: once it is whole, its end token is there too, out of sight.
    expect(answer).to_have_text(at_its_end["completion"], timeout=60_000, use_inner_text=True)


def test_its_download_is_a_model_that_transformers_loads(
    api: httpx.Client, run: Any, tmp_path: Path
) -> None:
    folder = download(api, find_checkpoint(api, run["id"], f"step-{NUM_STEPS:06d}"), tmp_path)
    probe = json.loads((folder / "manifest.json").read_text())["probe"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([probe["tokens"]])
    logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    found = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)
    assert found.tolist() == pytest.approx(probe["logprobs"], abs=1e-3)


def download(api: httpx.Client, saved: Any, target: Path) -> Path:
    body = api.get(f"/rest/checkpoints/{saved['id']}/download").content
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


def test_the_command_line_of_the_sdk_describes_and_downloads_it(
    live: Live, api: httpx.Client, run: Any, tmp_path: Path
) -> None:
    saved = find_checkpoint(api, run["id"], "step-000020")
    told = json.loads(live.type_tinker("--format", "json", "run", "info", run["model_id"]))
    assert (told["is_lora"], told["lora_rank"]) == (False, None)
    target = tmp_path / "sdk"
    live.type_tinker("checkpoint", "download", saved["tinker_path"], "--output", str(target))
    (folder,) = target.iterdir()
    same = download(api, saved, tmp_path / "rest")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (same / name).read_bytes()
    assert "library_name: transformers" in (folder / "README.md").read_text()


def test_a_branch_goes_on_exactly_where_its_checkpoint_was_saved(
    api: httpx.Client, run: Any, version_id: str
) -> None:
    """A step learns from all rows, so the batches are the same, but for their order."""
    saved = find_checkpoint(api, run["id"], "step-000020")
    config = {
        "steps": 4, "batch_size": NUM_LEARNED, "learning_rate": 0.002, "schedule": "constant",
        "held_out_share": 0.2, "evaluate_every": 0, "sampling": {"every": 0},
    }  # fmt: skip
    body = {
        "name": "a branch", "base_model": MODEL, "dataset_version": version_id, "config": config,
        "parent": saved["id"], "with_optimizer": True,
    }  # fmt: skip
    branch = api.post("/rest/runs", json=body).json()
    assert branch["rank"] == 0
    wait_for(api, f"/rest/runs/{branch['id']}", "done")
    losses = read_curve(api, run["id"])
    assert read_curve(api, branch["id"]) == losses[20:24]
    assert losses[20] != pytest.approx(losses[21], rel=1e-2)


def test_a_run_of_all_weights_is_paused_resumed_steered_and_stopped(
    api: httpx.Client, version_id: str
) -> None:
    config = {"rank": 0, "steps": 4000, "batch_size": 16, "sampling": {"every": 0}}
    body = {"base_model": MODEL, "dataset_version": version_id, "config": config}
    run_id = api.post("/rest/runs", json=body).json()["id"]
    path = f"/rest/runs/{run_id}"
    wait_for_step(api, path, 1)
    api.post(f"{path}/pause")
    paused = wait_for(api, path, "paused")
    api.post(f"{path}/resume")
    api.post(f"{path}/learning-rate", json={"learning_rate": 5e-4})
    wait_for_step(api, path, paused["step"] + 8)
    assert max(read_curve(api, run_id, "learning_rate")) == pytest.approx(5e-4, rel=0.05)
    api.post(f"{path}/stop")
    deadline = time.monotonic() + 180
    while api.get(path).json()["status"] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    (saved,) = api.get("/rest/checkpoints", params={"run": run_id}).json()["results"]
    assert (saved["type"], saved["has_optimizer"]) == ("base", True)


def wait_for_step(api: httpx.Client, path: str, step: int) -> None:
    deadline = time.monotonic() + 180
    while api.get(path).json()["step"] < step:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_program_on_the_sdk_goes_on_from_it_and_samples_each_of_its_saves(
    live: Live, api: httpx.Client, run: Any
) -> None:
    saved = find_checkpoint(api, run["id"], f"step-{NUM_STEPS:06d}")
    name = f"goes on {time.time_ns()}"
    told = live.run("full.py", saved["tinker_path"], RUN_NAME=name)
    assert (told["is_lora"], told["lora_rank"]) == (False, None)
    assert told["losses"][-1] < told["losses"][0]
    first, second = told["scores"]
    assert second == pytest.approx(told["scored"][:-1], abs=0.05)
    assert first != pytest.approx(second, abs=1e-3)
    rows = json.loads(live.manage(TYPES.format(column="name", value=name)))
    assert [(name, kind) for name, _, kind, _, _ in rows] == [
        ("first", "base"),
        ("second", "delta"),
    ]
    assert rows[1][4] == "first"
