"""The main path in a real browser: upload, run, watch the loss fall, serve, ask, evaluate."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.live import Live
from tests.e2e.test_live_pages import HINT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING_MS = 180_000
EVALUATION = re.compile(r"/evals/eval-\w+/$")
# The longest line of the first chart: what was really drawn, not what could be fetched.
DRAWN_LOSSES = (
    "[...(document.querySelector('.js-plotly-plot')?.data ?? [])]"
    ".map(line => [...line.y]).sort((a, b) => b.length - a.length)[0] ?? []"
)
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} - {b}?"},
            {"role": "assistant", "content": str(a - b)},
        ]
    }
    for a in range(10)
    for b in range(10)
]
NO_ANSWER = {"messages": [{"role": "user", "content": "And then?"}]}


def make_name(word: str) -> str:
    """Another one each time: a test that is run once more finds what its first run has left."""
    return f"{word} {time.monotonic_ns()}"


def follow(page: Page, name: str | re.Pattern[str]) -> None:
    page.get_by_role("link", name=name).first.click()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Run").get_by_role("link", name=name).click()


def test_a_newcomer_goes_from_a_file_to_a_served_and_evaluated_model(
    page: Page, live: Live, tmp_path: Path
) -> None:
    upload_a_dataset(page, tmp_path)
    launch_a_run(page)
    run_url = page.url
    watch_it_learn(page)
    serve_its_checkpoint(page)
    promote_and_roll_back(page)
    ask_it(page, run_url)
    evaluate_and_compare(page)


def upload_a_dataset(page: Page, folder: Path) -> None:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*ROWS, NO_ANSWER]))
    page.goto("/datasets/")
    follow(page, re.compile("Upload"))
    page.set_input_files("input[type=file]", file)
    page.get_by_label("Dataset", exact=True).fill("subtraction")
    page.get_by_role("button", name="Upload and check").click()
    expect(page.get_by_text("101", exact=True).first).to_be_visible(timeout=20_000)
    page.get_by_role("button", name=re.compile("Keep the 100")).click()
    expect(page.get_by_text("ready", exact=True).first).to_be_visible(timeout=20_000)
    second_row = page.locator(".token-row", has_text="Row 2")
    expect(second_row).to_be_visible(timeout=20_000)
    learned = second_row.locator(".token-view b").all_inner_texts()
    assert "".join(learned).strip() == "-1<|im_end|>"


def launch_a_run(page: Page) -> None:
    follow(page, re.compile("Launch a run"))
    page.get_by_label("Name").fill("Learns to subtract")
    page.get_by_label("Train for").fill("80")
    page.locator("select[name=length_unit]").select_option("steps")
    page.get_by_label("Batch size").fill("32")
    page.get_by_label("Learning rate").fill("0.005")
    page.get_by_label("Pinned prompts").fill("What is 7 - 5?\nWhat is 9 - 2?")
    page.get_by_label("Sample every").fill("20")
    page.get_by_label("Longest answer").fill("8")
    page.get_by_text("Advanced").click()
    page.get_by_label("Held-out share").fill("0.2")
    page.get_by_label("Held-out loss every").fill("20")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="Learns to subtract")).to_be_visible()


def watch_it_learn(page: Page) -> None:
    """Without one reload: what changes on the page arrives through its socket."""
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=60_000)
    expect(page.locator("#run-actions").get_by_text("done")).to_be_visible(timeout=TRAINING_MS)
    losses = wait_for_points(page, 80)
    assert len(losses) == 80
    assert sum(losses[-5:]) < sum(losses[:5]) / 3
    open_tab(page, "Samples")
    expect(page.get_by_text("What is 7 - 5?").first).to_be_visible()
    open_tab(page, "Log")
    expect(page.get_by_text(re.compile("Done after 80 steps"))).to_be_visible()


def wait_for_points(page: Page, number: int) -> list[float]:
    """Polled from here: the pages' own policy forbids what wait_for_function would evaluate."""
    losses: list[float] = []
    for _ in range(100):
        losses = page.evaluate(DRAWN_LOSSES)
        if len(losses) >= number:
            break
        page.wait_for_timeout(300)
    return losses


def serve_its_checkpoint(page: Page) -> None:
    open_tab(page, "Checkpoints")
    page.get_by_role("main").get_by_role("link", name="step-000080").first.click()
    follow(page, "Serve")
    page.get_by_label("Name").fill(make_name("subtraction"))
    page.get_by_role("button", name="Serve").click()
    expect(page.get_by_text(re.compile("agree on"))).to_be_visible(timeout=60_000)
    expect(page.get_by_text("ready", exact=True).first).to_be_visible(timeout=60_000)


def promote_and_roll_back(page: Page) -> None:
    """Without one reload: each change arrives when it is proven, and the old one answers on."""
    page.get_by_label("Serve", exact=True).select_option(label="tiny-chatml-1m as it is")
    page.get_by_role("button", name="Promote").click()
    history = page.locator("#history")
    expect(history.get_by_text("served")).to_have_count(2, timeout=60_000)
    expect(page.get_by_text("The base model as it is.")).to_be_visible()
    page.get_by_role("button", name=re.compile("Roll back to step-000080")).click()
    expect(history.get_by_text("served")).to_have_count(3, timeout=60_000)
    expect(page.get_by_text(re.compile("agree on"))).to_be_visible(timeout=60_000)


def ask_it(page: Page, run_url: str) -> None:
    page.goto(run_url + "?tab=checkpoints")
    page.get_by_role("main").get_by_role("link", name="step-000080").first.click()
    follow(page, "Chat")
    page.locator("textarea[name=prompt]").fill("What is 8 - 3?")
    page.get_by_role("button", name=re.compile("Ask|Send")).click()
    panes = page.locator(".pane")
    expect(panes).to_have_count(2)
    expect(panes.first.locator(".turn").last).to_contain_text("5", timeout=60_000)


def evaluate_and_compare(page: Page) -> None:
    page.goto("/evals/")
    follow(page, re.compile("New suite|Make a suite"))
    page.get_by_label("Name").fill(make_name("held out"))
    page.get_by_label("Held-out share").fill("0.2")
    page.get_by_role("button", name="Make suite").click()
    base = page.get_by_role("button", name=re.compile("Evaluate base"))
    expect(page.get_by_text("ready", exact=True).first).to_be_visible(timeout=20_000)
    suite_url = page.url
    base.first.click()
    page.wait_for_url(EVALUATION)  # else the way back and the way there would meet
    page.goto(suite_url)
    page.locator("select[name=target]").select_option(
        label="Learns to subtract / step-000080 (step 80)"
    )
    page.get_by_role("button", name="Evaluate", exact=True).click()
    page.wait_for_url(EVALUATION)
    page.goto(suite_url)
    expect(page.get_by_text("done", exact=True)).to_have_count(2, timeout=60_000)
    plain = page.get_by_label("Compare tiny-chatml-1m")
    plain.uncheck()
    fetch_again(page, "#evaluations", "evals")
    expect(plain).not_to_be_checked()
    plain.check()
    page.get_by_label(re.compile("Compare .*subtract")).check()
    page.get_by_role("button", name="Compare the chosen").click()
    expect(page.get_by_text(re.compile("is better on"))).to_be_visible()


def fetch_again(page: Page, place: str, what: str) -> None:
    """As when something changed, while somebody is at the page."""
    page.evaluate(f"document.querySelector('{place}').dataset.old = '1'")
    page.evaluate(HINT, what)
    expect(page.locator(f"{place}[data-old]")).to_have_count(0)


def test_a_run_is_paused_resumed_and_stopped_from_its_page(page: Page, live: Live) -> None:
    launch_by_rest(live, page, steps=100_000)
    expect(page.locator("#run-actions").get_by_text("running")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#run-actions").get_by_text("paused")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#run-actions").get_by_text("running")).to_be_visible(timeout=60_000)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Stop", exact=True).click()
    confirm = page.get_by_role("dialog").get_by_role("button", name="Stop")
    if confirm.count():
        confirm.click()
    expect(page.locator("#run-actions").get_by_text("cancelled")).to_be_visible(timeout=60_000)
    open_tab(page, "Checkpoints")
    expect(page.get_by_role("row").filter(has_text="optimizer")).to_have_count(1)


def test_a_page_that_lost_its_connection_shows_the_whole_history_again(
    page: Page, live: Live
) -> None:
    """Paused before anything else, so that there is something left to miss."""
    run_id = launch_by_rest(live, page, steps=600, is_paused=True)
    expect(page.locator("#run-actions").get_by_text("paused")).to_be_visible(timeout=60_000)
    page.context.set_offline(True)
    try:
        act_by_rest(live, run_id, "resume", "done")
        assert len(page.evaluate(DRAWN_LOSSES)) < 600
    finally:
        page.context.set_offline(False)
    expect(page.locator("#run-actions").get_by_text("done")).to_be_visible(timeout=60_000)
    assert len(wait_for_points(page, 600)) == 600


def open_rest(live: Live) -> httpx.Client:
    return httpx.Client(base_url=live.url, headers={"X-API-Key": live.api_key}, timeout=60)


def launch_by_rest(live: Live, page: Page, *, steps: int, is_paused: bool = False) -> str:
    """On the dataset that the first test uploaded, or one like it; leaves its page open."""
    with open_rest(live) as rest:
        content = "\n".join(json.dumps(row) for row in ROWS)
        files = {"file": ("rows.jsonl", content)}
        version = rest.post("/rest/dataset-versions", data={"name": "more"}, files=files).json()
        path = f"/rest/dataset-versions/{version['id']}"
        while rest.get(path).json()["status"] == "validating":
            page.wait_for_timeout(200)
        config = {"steps": steps, "rank": 4, "batch_size": 16, "learning_rate": 1e-3}
        body = {"base_model": "tiny-chatml-1m", "dataset_version": version["id"], "config": config}
        run = rest.post("/rest/runs", json=body).json()
    if is_paused:
        act_by_rest(live, run["id"], "pause", "paused")
    page.goto(f"/runs/{run['id']}/")
    return str(run["id"])


def act_by_rest(live: Live, run_id: str, act: str, status: str) -> None:
    """And wait until the run has got there."""
    with open_rest(live) as rest:
        rest.post(f"/rest/runs/{run_id}/{act}").raise_for_status()
        deadline = time.monotonic() + 120
        while rest.get(f"/rest/runs/{run_id}").json()["status"] != status:
            assert time.monotonic() < deadline
            time.sleep(0.3)
