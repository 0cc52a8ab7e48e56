"""The playground in a real browser: two answers seen as they are drawn, looked into, and kept."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# How long each answer's text was, whenever it changed while it was drawn.
WATCH = """
window.seen = [[], []];
new MutationObserver(() => {
    document.querySelectorAll("[data-streamed]").forEach((place, side) => {
        if (place.textContent) window.seen[side].push(place.textContent.length);
    });
}).observe(document, { subtree: true, childList: true });
"""


def test_two_answers_are_drawn_side_by_side_looked_into_and_kept(page: Page, live: Live) -> None:
    page.add_init_script(WATCH)
    page.goto("/playground/")
    for side in ("left", "right"):
        page.locator(f"select[name={side}]").select_option(label="tiny-chatml-1m")
    page.get_by_text("Settings:").click()
    page.get_by_label("Temperature").fill("1.2")
    page.get_by_label("Longest answer").fill("80")
    page.locator("textarea[name=prompt]").fill("Tell me a story.")
    page.get_by_role("button", name="Send").click()
    answers = page.locator(".answer:has([data-sampled])")
    expect(answers).to_have_count(2, timeout=60_000)
    left, right = answers.first.locator(".sampled"), answers.last.locator(".sampled")
    assert left.inner_text() == right.inner_text()  # the same model, the same seed
    for lengths in page.evaluate("window.seen"):  # a quick machine draws all of it at once
        assert lengths
        assert lengths == sorted(lengths)
    expect(answers.first).to_contain_text("built-in generator")
    look_into(page)
    keep(page)


def look_into(page: Page) -> None:
    """By pointer and by the arrow keys."""
    card = page.locator("#token-card")
    page.locator(".sampled > .t").nth(1).hover()
    expect(card).to_contain_text(re.compile(r"log p = -?\d+\.\d{4}"))
    expect(card.get_by_role("row")).not_to_have_count(0)
    page.locator(".sampled").first.focus()
    page.keyboard.press("ArrowRight")
    expect(card).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def keep(page: Page) -> None:
    page.get_by_role("button", name="Keep").first.click()
    dialog = page.locator("#keep")
    dialog.get_by_label("Dataset").fill("good answers")
    dialog.get_by_role("button", name="Keep as a row").click()
    dialog.get_by_role("link", name=re.compile(r"good answers v\d")).click()
    expect(page.get_by_text("ready", exact=True).first).to_be_visible(timeout=20_000)
    expect(page.get_by_text("Tell me a story.").first).to_be_visible()
