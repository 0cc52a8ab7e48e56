"""A sweep launched from the form, watched on one page; a run steered while it learns."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import Live
from tests.e2e.test_dashboard import ROWS
from tests.e2e.test_recovery import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WAIT_MS = 90_000


@pytest.fixture(scope="module")
def api(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, headers={"X-API-Key": live.api_key}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def version(api: httpx.Client) -> str:
    rows = "\n".join(json.dumps(row) for row in ROWS)
    files = {"file": ("rows.jsonl", rows)}
    made = api.post("/rest/dataset-versions", data={"name": "swept"}, files=files).json()
    wait_until(api, f"/rest/dataset-versions/{made['id']}", "ready")
    return str(made["id"])


def test_a_sweep_is_launched_from_the_form_and_its_runs_are_compared(
    page: Page, version: str
) -> None:
    page.goto(f"/runs/new/?dataset_version={version}")
    page.get_by_label("Name").fill("rates")
    page.get_by_label("Train for").fill("6")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_text("Advanced").click()
    page.get_by_label("Held-out loss every").fill("3")
    page.get_by_label("Sweep over").fill("learning_rate: 1e-5, 1e-2\nseed: 1, 2")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="rates", exact=True)).to_be_visible()
    rows = page.locator("#group-rows tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.get_by_text("done", exact=True)).to_have_count(4, timeout=WAIT_MS)
    page.reload()
    expect(page.locator("select[name=metric]")).to_have_value("held_out_loss")
    expect(rows.first).to_contain_text("0.01")
    expect(rows.first).to_contain_text("best")
    expect(page.locator("#group-chart .scatterlayer .trace").first).to_be_visible()
    check_page(page)


def test_what_a_person_does_to_a_run_stands_on_its_curves(
    page: Page, api: httpx.Client, version: str
) -> None:
    body = {
        "name": "steered",
        "base_model": "tiny-chatml-1m",
        "dataset_version": version,
        "config": {"steps": 4000, "evaluate_every": 0, "checkpoint_every": 40},
    }
    run = api.post("/rest/runs", json=body).json()["id"]
    page.goto(f"/runs/{run}/")
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("button", name="Change learning rate").click()
    page.locator("#learning-rate input[name=learning_rate]").fill("0.0007")
    page.locator("#learning-rate").get_by_role("button", name="Change it").click()
    expect(page.get_by_text("learning rate 0.0007").first).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("button", name="Stop at next checkpoint").click()
    expect(page.locator("#run-actions").get_by_text("cancelled")).to_be_visible(timeout=WAIT_MS)
    page.goto(f"/runs/{run}/?tab=log")
    expect(page.get_by_text(re.compile(r"Stopped after \d+ steps; the checkpoint"))).to_be_visible()
    saved = api.get(f"/rest/runs/{run}").json()["step"]
    assert saved % 40 == 0
    rates = api.get(f"/rest/runs/{run}/metrics?key=learning_rate").json()["series"]
    assert rates["learning_rate"][0][1] < 2e-4 < rates["learning_rate"][-1][1] <= 7e-4
    check_page(page)
