"""Lineage, branches, retention and storage in a real browser, over a project with 500 nodes."""

import re
import time
from collections.abc import Sequence
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.conftest import switch_project
from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SLOW_MS = 30_000
SEED = """
from bench.lineage_rows import seed_project
from webapp.accounts.models import User
from webapp.accounts.services import create_project
from webapp.fleet.models import BaseModel
from webapp.runs.models import Metric, Operation, Run
owner = User.objects.get(username="owner")
project = create_project(user=owner, name="{name}")
seed_project(user=owner, project=project, base=BaseModel.objects.first())
for run in Run.objects.filter(project=project):
    Metric.objects.bulk_create(
        Metric(run=run, step=step, key="loss", value=2 - step / 1000) for step in range(1, 1200, 40)
    )
    Operation.objects.create(run=run, seq=0, kind="optim_step", digest="", status="done")
print(Run.objects.filter(project=project, parent__isnull=False).first().parent.run_id)
"""
LOOKS: Sequence[tuple[Literal["light", "dark"], int]] = [("light", 1440), ("dark", 390)]


@pytest.fixture
def seeded(page: Page, live: Live) -> str:
    """The id of a run that others branch from, in a project of its own."""
    name = f"500 nodes {time.time_ns()}"
    root = live.manage(SEED.format(name=name))
    switch_project(page, name)
    return root


def look(page: Page) -> None:
    """As axe-core sees it, in both themes and both widths; nothing but its own box scrolls."""
    for scheme, width in LOOKS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
        check_page(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1440, "height": 900})


def test_five_hundred_nodes_are_read_followed_and_tidied_up(page: Page, seeded: str) -> None:
    read_the_lineage(page)
    follow_branches(page, seeded)
    pin_what_is_chosen(page)
    apply_a_rule(page)
    set_a_budget(page)


def read_the_lineage(page: Page) -> None:
    page.goto("/checkpoints/lineage/")
    expect(page.get_by_text(re.compile("500 nodes, drawn as"))).to_be_visible(timeout=SLOW_MS)
    look(page)
    page.get_by_label("Find in the lineage").fill("endpoint-3")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("1 found")).to_be_visible(timeout=SLOW_MS)
    page.locator(".hits").get_by_role("link", name="endpoint-3").click()
    expect(page.get_by_text(re.compile("comes from, and what came of it"))).to_be_visible()
    look(page)
    page.get_by_role("navigation", name="Depth").get_by_role("link", name="2", exact=True).click()
    expect(page.get_by_text("3 nodes.")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("link", name="Show the whole project").click()
    stack = page.locator(".lineage g.fold a", has_text="12 checkpoints").first
    stack.click()
    expect(page.locator(".lineage a.close")).to_have_count(1, timeout=SLOW_MS)
    page.locator(".lineage a.close").click()
    expect(page.locator(".lineage a.close")).to_have_count(0, timeout=SLOW_MS)


def follow_branches(page: Page, root: str) -> None:
    page.goto(f"/runs/{root}/?tab=branches")
    expect(page.locator(".branch-chart polyline")).to_have_count(2, timeout=SLOW_MS)
    look(page)
    page.locator(".branch-chart a").first.click()
    expect(page.get_by_role("navigation", name="Where this comes from")).to_be_visible()
    look(page)


def pin_what_is_chosen(page: Page) -> None:
    page.goto("/checkpoints/?sort=step&q=000100")
    look(page)
    boxes = page.locator("input[name=chosen]")
    boxes.nth(0).check()
    boxes.nth(1).check()
    expect(page.get_by_text("2 chosen, 2.8 GiB")).to_be_visible()
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_text(re.compile("2 checkpoints pinned"))).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".tag", has_text="pinned")).to_have_count(2)
    assert page.url.endswith("?sort=step&q=000100")


def apply_a_rule(page: Page) -> None:
    page.goto("/checkpoints/retention/")
    page.get_by_label("Best").fill("3")
    page.get_by_label("Score from the suite").select_option(label="refund policy")
    page.get_by_label("Keep the last of each run").fill("1")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("Nothing was saved or deleted")).to_be_visible(timeout=SLOW_MS)
    look(page)
    page.get_by_role("button", name="Save rule").click()
    would = page.get_by_text(re.compile("Would delete .* of 264"))
    expect(would).to_be_visible(timeout=SLOW_MS)
    number = re.search(r"Would delete (\d+)", would.inner_text())
    assert number is not None
    page.get_by_role("button", name=re.compile(f"Delete {number[1]} now")).click()
    page.locator("#confirm [data-confirmed]").click()
    expect(page.get_by_text(f"{number[1]} checkpoints deleted")).to_be_visible(timeout=SLOW_MS)
    left = 264 - int(number[1])
    expect(page.get_by_text(f"Would delete 0 of {left}")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text("stays: pinned").first).to_be_visible()


def set_a_budget(page: Page) -> None:
    page.goto("/settings/storage/")
    page.get_by_label("Budget").fill("1")
    page.get_by_role("button", name="Save budget").click()
    expect(page.get_by_text(re.compile("over its budget"))).to_be_visible(timeout=SLOW_MS)
    look(page)
