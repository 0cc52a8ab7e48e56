"""Datasets in a real browser: each kind, filters, a split, leaks, tokens, pairs from a document."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

VERSION = re.compile(r"/datasets/versions/dsv-\w+/$")
WORKER_MS = 60_000
SIZES = ((1440, 900), (390, 844))
CITIES = ("Paris", "Lyon", "Nice", "Lille", "Metz", "Brest", "Tours", "Nancy", "Dijon", "Reims")

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"How do I travel from {one} to {two} by train?"},
            {"role": "assistant", "content": f"Take the train from {one} and leave it at {two}."},
        ],
        "source": "north" if place % 2 else "south",
    }
    for place, one in enumerate(CITIES)
    for two in CITIES
    if one != two
]
# The row before, with one word more.
NEAR = {
    "messages": [
        {"role": "user", "content": "How do I travel from Reims to Dijon by train today?"},
        {"role": "assistant", "content": "Take the train from Reims and leave it at Dijon."},
    ]
}
KINDS: dict[str, list[dict[str, Any]]] = {
    "Conversations": [*CHATS, NEAR, CHATS[0]],
    "Preference pairs": [{"prompt": "Best town?", "chosen": "Paris", "rejected": "Nowhere"}],
    "Prompts with a reference answer": [{"prompt": "What is 2 + 3?", "target": "5"}],
    "Plain text": [{"text": "Paris lies on the Seine, and Lyon on the Rhone."}],
    "Prompts with completions": [{"question": "What is 2 + 3?", "answer": "5"}],
}
TOWNS = "# Rivers\n\nParis lies on the Seine.\n\n# Seas\n\nNice lies on the sea."


def make_name(word: str) -> str:
    """Another one each time: a test that is run once more finds what its first run has left."""
    return f"{word} {time.monotonic_ns()}"


def test_rows_of_every_kind_are_taken_filtered_split_and_checked(
    page: Page, live: Live, tmp_path: Path
) -> None:
    for kind, rows in reversed(KINDS.items()):
        upload(page, tmp_path, make_name(kind), kind, rows)
    origin = page.url
    filter_rows(page)
    page.goto(origin)
    split_rows(page)
    find_twins_and_leaks(page)
    look_at_tokens_and_changes(page)
    review_pairs(page, live, tmp_path)


def upload(page: Page, folder: Path, name: str, kind: str, rows: list[dict[str, Any]]) -> None:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    page.goto("/datasets/new/")
    page.set_input_files("input[type=file]", file)
    page.get_by_label("Dataset", exact=True).fill(name)
    page.get_by_role("button", name="Upload and check").click()
    expect(page).to_have_url(VERSION)
    if "question" in rows[0]:
        expect(page.get_by_text("The columns do not tell")).to_be_visible(timeout=WORKER_MS)
        look(page, "kind")
        page.get_by_role("button", name=kind).click()
    wait_ready(page)
    expect(page.get_by_role("definition").get_by_text(kind, exact=True)).to_be_visible()
    expect(page.locator(".token-row").first).to_be_visible(timeout=WORKER_MS)
    if len(rows) > 1 or "chosen" in rows[0]:
        look(page, f"version-{kind}")


def wait_ready(page: Page) -> None:
    expect(page.locator(".badge").get_by_text("ready", exact=True).first).to_be_visible(
        timeout=WORKER_MS
    )


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Dataset version").get_by_role("link", name=name).click()


def filter_rows(page: Page) -> None:
    open_tab(page, "Filter and split")
    page.get_by_label("Column").fill("source")
    page.get_by_label("Equals").fill("north")
    page.get_by_label("Each row once").check()
    count = page.get_by_role("status")
    expect(count.get_by_text("Keeps 45 of 92 rows")).to_be_visible(timeout=WORKER_MS)
    look(page, "derive")
    page.get_by_role("button", name="Make the version").click()
    wait_ready(page)
    expect(page.get_by_text("source is “north”; each row once")).to_be_visible()
    look(page, "derived")


def split_rows(page: Page) -> None:
    open_tab(page, "Filter and split")
    page.get_by_label("Held-out share").fill("0.5")
    expect(page.get_by_role("status").get_by_text(re.compile("to train on"))).to_be_visible(
        timeout=WORKER_MS
    )
    page.get_by_role("button", name="Make the version").click()
    wait_ready(page)
    expect(page.get_by_text(re.compile("split by row with seed 0"))).to_be_visible()


def find_twins_and_leaks(page: Page) -> None:
    """The near row and the one it was made of may fall on both sides: the origin has both."""
    train = page.url
    page.get_by_role("definition").get_by_role("link", name=re.compile("v1")).first.click()
    open_tab(page, "Duplicates and leaks")
    page.get_by_label("Similarity from").first.select_option("0.7")
    page.get_by_role("button", name="Look for near-duplicates").click()
    twins = page.locator("#near-duplicates")
    expect(twins.get_by_text("by train today?")).to_be_visible(timeout=WORKER_MS)
    page.get_by_label("Against").select_option(index=0)
    page.get_by_role("button", name="Look for leaks").click()
    leaks = page.locator("#leakage")
    expect(leaks.get_by_text("rows here that are there too")).to_be_visible(timeout=WORKER_MS)
    look(page, "checks")
    page.goto(train)


def look_at_tokens_and_changes(page: Page) -> None:
    open_tab(page, "Tokens")
    expect(page.get_by_role("img", name=re.compile("number of tokens"))).to_be_visible(
        timeout=WORKER_MS
    )
    look(page, "tokens")
    open_tab(page, "Changes")
    expect(page.get_by_role("heading", name="Removed")).to_be_visible(timeout=WORKER_MS)
    look(page, "changes")


def review_pairs(page: Page, live: Live, folder: Path) -> None:
    """The tiny model writes no pairs: what a better one had written is put beside its answers."""
    file = folder / "towns.md"
    file.write_text(TOWNS)
    page.goto("/generations/new/")
    look(page, "generation-new")
    page.set_input_files("input[type=file]", file)
    page.get_by_label("Dataset", exact=True).fill(make_name("towns"))
    page.get_by_label("Model to ask").select_option(label="tiny-chatml-1m")
    page.get_by_label("Characters a passage").fill("200")
    page.get_by_label("Longest answer").fill("16")
    page.get_by_role("button", name="Upload and ask").click()
    expect(page.locator("#progress").get_by_text("Asked", exact=True)).to_be_visible()
    wait_until_reviewed(live, page.url)
    page.reload()
    cards = page.locator("[data-pair]")
    expect(cards).to_have_count(3)
    look(page, "review")
    page.keyboard.press("j")
    expect(cards.nth(0)).to_be_focused()
    page.keyboard.press("a")
    expect(badge_of(cards.nth(0), "accepted")).to_be_visible()
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("r")
    expect(badge_of(cards.nth(1), "rejected")).to_be_visible()
    page.keyboard.press("e")
    cards.nth(2).get_by_label("Answer").fill("The sea.")
    cards.nth(2).get_by_role("button", name="Accept with this").click()
    expect(badge_of(cards.nth(2), "accepted")).to_be_visible()
    look(page, "reviewed")
    page.reload()
    page.get_by_role("button", name="Make a dataset version").click()
    wait_ready(page)
    expect(page.get_by_text(re.compile("2 of 3 pairs"))).to_be_visible()


def badge_of(card: Locator, word: str) -> Locator:
    return card.locator(".badge").get_by_text(word)


def wait_until_reviewed(live: Live, url: str) -> None:
    """Both passages were asked about by the real path; then three pairs come in."""
    generation_id = url.rstrip("/").rsplit("/", 1)[-1]
    deadline = time.monotonic() + 180
    code = (
        "from webapp.datasets.records import GeneratedPair, Generation\n"
        f"found = Generation.objects.get(pk='{generation_id}')\n"
        "if found.status == 'review':\n"
        "    GeneratedPair.objects.filter(passage__generation=found).delete()\n"
        "    rivers, seas = found.passages.filter(is_asked=True)\n"
        "    for number, passage in ((1, rivers), (2, rivers), (1, seas)):\n"
        "        GeneratedPair.objects.create(passage=passage, number=number,\n"
        "            question=f'What lies where, {number}?', answer='Paris.')\n"
        "print(found.status, found.error)"
    )
    while not (status := live.manage(code)).startswith("review"):
        assert time.monotonic() < deadline, status
        assert not status.startswith("failed"), status
        time.sleep(1)


def look(page: Page, _name: str) -> None:
    """Light and dark, wide and narrow: nothing scrolls sideways, and nobody is shut out."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            check_page(page)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{page.url} is {wide} pixels too wide at {width}"
    page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})
