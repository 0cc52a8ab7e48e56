"""What axe-core finds wrong with a page for somebody who reads it by keyboard or screen reader."""

from collections.abc import Mapping
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("serious", "critical")


def check_page(page: Page) -> None:
    """Fails on what is serious or critical, and says which element it is and why."""
    found = Axe().run(page).response["violations"]
    grave = [_describe(each) for each in found if each["impact"] in GRAVE]
    assert grave == [], f"{page.url}\n" + "\n".join(grave)


def _describe(violation: Mapping[str, Any]) -> str:
    where = "; ".join(
        f"{node['html'][:200]} {node['failureSummary']}" for node in violation["nodes"]
    )
    return f"{violation['impact']} {violation['id']}: {violation['help']}: {where}"
