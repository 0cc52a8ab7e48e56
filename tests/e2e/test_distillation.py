"""Distillation in the whole product: from the form, over REST, and as programs on the SDK."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import Live
from tests.e2e.test_methods import finish, launch, read_curve, rest, run_program, upload

__all__ = ["rest"]  # a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHARED: dict[str, Any] = {
    "rank": 8,
    "learning_rate": 0.003,
    "schedule": "constant",
    "batch_size": 8,
    "held_out_share": 0.25,
    "evaluate_every": 4,
    "max_tokens": 12,
    "teacher": "tiny-chatml-1m",
    "sampling": {"every": 0},
}
PROMPT = "Say that you are fine."
QUESTIONS = [
    {"prompt": f"What is {a} + {b}?", "target": str(a + b)} for a in range(6) for b in range(5)
]


@pytest.fixture(scope="module")
def content() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in QUESTIONS).encode()


def test_a_prompt_is_taken_to_heart_from_the_form(
    page: Page, rest: httpx.Client, content: bytes
) -> None:
    upload(rest, "questions of the form", content)
    page.goto("/runs/new/?method=prompt_distillation")
    page.get_by_label("Name").fill("Knows it by heart")
    page.get_by_label("Dataset", exact=True).select_option(label="questions of the form v1")
    page.get_by_label("Prompt to take to heart").fill(PROMPT)
    page.get_by_label("Longest answer of the teacher").fill("12")
    page.get_by_label("Train for").fill("12")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Learning rate").fill("0.003")
    page.get_by_label("Sample every").fill("0")
    page.get_by_text("Advanced").click()
    page.get_by_label("Held-out share").fill("0.25")
    page.locator("input[name=evaluate_every]").fill("4")
    check_page(page)
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="Knows it by heart")).to_be_visible(timeout=20_000)
    run_id = page.url.rstrip("/").split("/")[-1]
    run = finish(rest, run_id)
    assert (run["recipe"], run["origin"]) == ("prompt_distillation", "browser")
    distance = read_curve(rest, run_id, "teacher/kl")
    assert list(distance) == [4, 8, 12]
    assert distance[12] < distance[4]


@pytest.mark.parametrize("recipe", ["on_policy_distillation", "off_policy_distillation"])
def test_a_program_distils_as_the_run_did(
    page: Page, live: Live, rest: httpx.Client, content: bytes, tmp_path: Path, recipe: str
) -> None:
    version = upload(rest, f"questions of {recipe}", content)
    own = {"group_size": 2} if recipe.startswith("on") else {"answers_per_prompt": 1}
    run_id = launch(rest, recipe, version, {**SHARED, **own, "steps": 4})
    finish(rest, run_id)
    assert "teacher/kl" in rest.get(f"/rest/runs/{run_id}/metrics").json()["series"]
    (tmp_path / f"questions of {recipe}.jsonl").write_bytes(content)
    told = run_program(page, live, run_id, tmp_path)
    losses = read_curve(rest, run_id, "loss")
    assert {each["step"]: each["loss"] for each in told} == pytest.approx(losses, abs=2e-3)
