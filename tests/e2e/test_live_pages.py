"""A page hears of a change even while it fetches itself because of another."""

import pytest
from playwright.sync_api import Page, Route

from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HINT = "what => document.body.dispatchEvent(new CustomEvent(`live:${what}`, { detail: { what } }))"
SOON_MS = 10_000  # less than the silence after which a page looks again by itself


def hold_next(page: Page, url: str) -> Route:
    """The page's next fetch of itself, which gets no answer yet."""
    held: list[Route] = []

    def hold_one(route: Route) -> None:
        if held:
            route.fallback()
        else:
            held.append(route)

    page.route(url, hold_one)
    page.evaluate(HINT, "deployments")
    while not held:
        page.wait_for_timeout(20)
    return held[0]


def test_a_hint_that_comes_while_a_page_fetches_itself_is_followed(page: Page, live: Live) -> None:
    page.goto("/deployments/")
    fetch = hold_next(page, page.url)
    page.evaluate(HINT, "deployments")
    with page.expect_request(page.url, timeout=SOON_MS):
        fetch.continue_()


def test_a_hint_that_comes_right_after_is_followed(page: Page, live: Live) -> None:
    page.goto("/deployments/")
    fetch = hold_next(page, page.url)
    page.evaluate("document.querySelector('#deployments').dataset.old = '1'")
    page.evaluate(
        "new MutationObserver((_, watch) => {"
        " if (document.querySelector('[data-old]')) return;"
        " watch.disconnect();"
        f" ({HINT})('deployments');"
        "}).observe(document, { subtree: true, childList: true })"
    )
    with page.expect_request(page.url, timeout=SOON_MS):
        fetch.continue_()
