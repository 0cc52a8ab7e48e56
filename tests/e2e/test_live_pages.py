"""A page hears of a change even while it fetches itself because of another."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HINT = "what => document.body.dispatchEvent(new CustomEvent(`live:${what}`, { detail: { what } }))"
# After some seconds of silence a page looks again by itself: of this one none have passed, ever.
STOP_THE_CLOCK = "const started = Date.now(); Date.now = () => started;"
PATIENCE_MS = 60_000


@pytest.fixture
def timeless(page: Page) -> Iterator[Page]:
    """It hears of changes, or never knows of them."""
    timeless = page.context.new_page()
    timeless.add_init_script(STOP_THE_CLOCK)
    yield timeless
    timeless.close()


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


def test_a_hint_that_comes_while_a_page_fetches_itself_is_followed(timeless: Page) -> None:
    timeless.goto("/deployments/")
    fetch = hold_next(timeless, timeless.url)
    timeless.evaluate(HINT, "deployments")
    with timeless.expect_request(timeless.url, timeout=PATIENCE_MS):
        fetch.continue_()


def test_a_hint_that_comes_right_after_is_followed(timeless: Page) -> None:
    timeless.goto("/deployments/")
    fetch = hold_next(timeless, timeless.url)
    timeless.evaluate("document.querySelector('#deployments').dataset.old = '1'")
    timeless.evaluate(
        "new MutationObserver((_, watch) => {"
        " if (document.querySelector('[data-old]')) return;"
        " watch.disconnect();"
        f" ({HINT})('deployments');"
        "}).observe(document, { subtree: true, childList: true })"
    )
    with timeless.expect_request(timeless.url, timeout=PATIENCE_MS):
        fetch.continue_()
