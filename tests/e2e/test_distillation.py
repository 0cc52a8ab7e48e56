"""Distillation in the whole product: from the form, over REST, and as programs on the SDK."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

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
    "sampling": {"every": 0},
}
PROMPT = "Say that you are fine."
PAIRS = [(a, b) for a in range(4, 10) for b in range(5)]
QUESTIONS = [{"prompt": f"What is {a} - {b}?", "target": str(a - b)} for a, b in PAIRS]
ANSWERS = [{"prompt": f"What is {a} - {b}?", "completion": str(a - b)} for a, b in PAIRS]


def write(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def content() -> bytes:
    return write(QUESTIONS)


@pytest.fixture
def teacher(rest: httpx.Client) -> str:
    """A checkpoint that has learned to subtract, which the base model has not."""
    config = {"rank": 8, "learning_rate": 0.01, "batch_size": 30, "steps": 30, "evaluate_every": 0}
    version = upload(rest, f"differences {uuid4().hex[:6]}", write(ANSWERS))
    run_id = launch(rest, "sft", version, {**config, "held_out_share": 0})
    finish(rest, run_id)
    rows = rest.get("/rest/checkpoints", params={"run": run_id}).json()["results"]
    return next(str(row["id"]) for row in rows if row["run"] == run_id)


def test_a_prompt_is_taken_to_heart_from_the_form(
    page: Page, rest: httpx.Client, content: bytes
) -> None:
    upload(rest, "questions of the form", content)
    page.goto("/runs/new/?method=prompt_distillation")
    page.get_by_label("Name").fill("Knows it by heart")
    page.get_by_label("Dataset", exact=True).select_option(label="questions of the form v1")
    page.get_by_label("Prompt to take to heart").fill(PROMPT)
    page.get_by_label("Longest answer of the teacher").fill("12")
    page.get_by_label("Train for").fill("16")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Learning rate").fill("0.0005")
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
    assert list(distance) == [4, 8, 12, 16]
    assert distance[16] < distance[4]


@pytest.mark.parametrize("recipe", ["on_policy_distillation", "off_policy_distillation"])
def test_a_student_comes_nearer_to_its_teacher_and_a_program_does_the_same(
    page: Page,
    live: Live,
    rest: httpx.Client,
    content: bytes,
    teacher: str,
    tmp_path: Path,
    recipe: str,
) -> None:
    name = f"questions {uuid4().hex[:6]}"
    own = {"group_size": 4, "steps": 16} if recipe.startswith("on") else {"steps": 8}
    config = {**SHARED, **own, "teacher": teacher}
    run_id = launch(rest, recipe, upload(rest, name, content), config)
    finish(rest, run_id)
    distance = list(read_curve(rest, run_id, "teacher/kl").values())
    assert distance[-1] < distance[0]
    (tmp_path / f"{name}.jsonl").write_bytes(content)
    told = run_program(page, live, run_id, tmp_path)
    losses = read_curve(rest, run_id, "loss")
    first = {each["step"]: each["loss"] for each in told[:2]}
    assert first == pytest.approx({step: losses[step] for step in first}, abs=5e-3)
    assert len(told) == len(losses)


@pytest.mark.parametrize("recipe", ["on_policy_distillation", "off_policy_distillation"])
def test_a_teacher_is_chosen_in_the_form(
    page: Page, rest: httpx.Client, content: bytes, recipe: str
) -> None:
    name = f"questions {uuid4().hex[:6]}"
    upload(rest, name, content)
    page.goto(f"/runs/new/?method={recipe}")
    page.get_by_label("Dataset", exact=True).select_option(label=f"{name} v1")
    page.get_by_label("Teacher", exact=True).select_option(label="tiny-chatml-1m")
    page.get_by_label("Train for").fill("2")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Sample every").fill("0")
    page.get_by_role("button", name="Launch").click()
    expect(page).to_have_url(re.compile(r"/runs/run-\w+/$"), timeout=20_000)
    run = finish(rest, page.url.rstrip("/").split("/")[-1])
    assert (run["recipe"], run["origin"], run["step"]) == (recipe, "browser", 2)
    assert run["config"]["teacher"] == "tiny-chatml-1m"


def test_a_prompt_is_taken_to_heart_over_rest(rest: httpx.Client, content: bytes) -> None:
    version = upload(rest, f"questions {uuid4().hex[:6]}", content)
    config = {**SHARED, "teacher_prompt": PROMPT, "steps": 2}
    run = finish(rest, launch(rest, "prompt_distillation", version, config))
    assert (run["origin"], run["step"]) == ("rest", 2)
    assert run["config"]["teacher_prompt"] == PROMPT
