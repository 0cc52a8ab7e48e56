"""One installation for all tests of the whole product, and a browser that is signed in to it."""

import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import PAGES_FAILED
from tests.e2e.live import Live

CHROMIUM = "/usr/bin/chromium"
# Without these a browser tries to reach its maker's hosts.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"] + [
    f"--disable-{what}" for what in ("background-networking", "component-update", "sync")
]

LOG_CHARACTERS = 3000
OPEN_PROJECT = """
from webapp.accounts.models import Actor, User
from webapp.accounts.services import create_key, create_project
user = User.objects.get(username='owner')
project = create_project(user=user, name='{name}')
print(create_key(actor=Actor(user=user, project=project, role='owner'), name='{name}')[1])
"""
expect.set_options(timeout=20_000)  # a busy machine takes its time; what is there is found at once


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """What failed in an installation that is gone by tomorrow stands in its processes' logs."""
    report = yield
    if report.failed:
        given = getattr(item, "funcargs", {}).values()
        installations = [each for each in given if isinstance(each, Live)]
        for log in (log for each in installations for log in each.list_logs()):
            end = log.read_text(errors="replace")[-LOG_CHARACTERS:]
            report.sections.append((f"the end of {log.name}", end))
        for each in installations:
            each.quieten()
    return report


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    installation = Live(tmp_path_factory.mktemp("live"))
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """Signed in by a link, as the first person is; fails on any error the pages make."""
    page = browser.new_context(
        base_url=live.url, viewport={"width": 1440, "height": 900}
    ).new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda r: complaints.append(r.url) if r.status >= 500 else None)
    page.goto(make_sign_in_link(live))
    expect(page).to_have_title("Overview · Hone")
    yield page
    assert complaints == [], PAGES_FAILED


@pytest.fixture
def project_key(page: Page, live: Live) -> str:
    """Of a project of this try alone, where every name is free. The browser is in it."""
    name = f"own {time.time_ns()}"
    key = live.manage(OPEN_PROJECT.format(name=name))
    switch_project(page, name)
    return key


def switch_project(page: Page, name: str) -> None:
    page.goto("/")
    page.locator("summary.switch").click()
    page.get_by_role("button", name=name).click()
    expect(page.locator("summary.switch")).to_contain_text(name)


def make_sign_in_link(live: Live) -> str:
    secret = live.manage(
        "from webapp.accounts.models import User\n"
        "from webapp.accounts.services import create_sign_in_link\n"
        "print(create_sign_in_link(user=User.objects.get(username='owner')))"
    )
    return f"{live.url}/sign-in/{secret}/"
