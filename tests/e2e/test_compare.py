"""Three evaluations compared in a browser, kept as files, and an alias that moves by a test."""

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PATIENCE_MS = 60_000
LONGEST_SECONDS = 180
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} - {b}?"},
            {"role": "assistant", "content": str(a - b)},
        ],
        "sign": "negative" if a < b else "positive",
    }
    for a in range(10)
    for b in range(10)
]
TAUGHT = {"steps": 80, "rank": 8, "batch_size": 32, "learning_rate": 5e-3, "checkpoint_every": 40}
UNTAUGHT = {"steps": 4, "rank": 4, "batch_size": 4, "learning_rate": 1e-7, "checkpoint_every": 2}


class Rest:
    """The same installation, as a program sees it."""

    def __init__(self, live: Live, key: str) -> None:
        headers = {"X-API-Key": key}
        self.client = httpx.Client(base_url=live.url, headers=headers, timeout=60)

    def close(self) -> None:
        self.client.close()

    def get(self, path: str) -> Any:
        return self.client.get(f"/rest/{path}").raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/rest/{path}", json=body).raise_for_status().json()

    def wait(self, path: str, is_ready: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not is_ready(found := self.get(path)):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


def upload(rest: Rest) -> str:
    content = "\n".join(json.dumps(row) for row in ROWS)
    version = rest.client.post(
        "/rest/dataset-versions", data={"name": "differences"}, files={"file": ("r.jsonl", content)}
    ).json()
    rest.wait(f"dataset-versions/{version['id']}", lambda found: found["status"] == "ready")
    return str(version["id"])


def train(rest: Rest, version: str, name: str, config: dict[str, Any]) -> list[str]:
    """Its training checkpoints, in the order of their steps."""
    body = {"name": name, "base_model": "tiny-chatml-1m", "dataset_version": version}
    run = rest.post("runs", **body, config=config)
    rest.wait(f"runs/{run['id']}", lambda found: found["status"] == "done")
    found = rest.get(f"checkpoints?run={run['id']}")["results"]
    mine = [each for each in found if each["run"] == run["id"] and each["kind"] == "training"]
    return [each["id"] for each in sorted(mine, key=lambda each: each["step"])]


def evaluate_three(rest: Rest, suite: str, untaught: str, taught: str) -> list[str]:
    asked = [
        rest.post("evaluations", suite=suite, **target)
        for target in (
            {"base_model": "tiny-chatml-1m"},
            {"checkpoint": untaught},
            {"checkpoint": taught},
        )
    ]
    for each in asked:
        rest.wait(f"evaluations/{each['id']}", lambda found: found["status"] == "done")
    return [each["id"] for each in asked]


def make_suite(rest: Rest, version: str) -> str:
    graders = [{"name": "exact_match"}, {"name": "numeric"}]
    suite = rest.post(
        "suites", name="short sums", dataset_version=version, graders=graders, held_out_share=1.0
    )
    rest.wait(f"suites/{suite['id']}", lambda found: found["status"] == "ready")
    return str(suite["id"])


def test_three_evaluations_are_compared_kept_and_decide_where_an_alias_points(
    page: Page, live: Live, project_key: str, tmp_path: Path
) -> None:
    with closing(Rest(live, project_key)) as rest:
        version = upload(rest)
        untaught, taught = (
            train(rest, version, "untaught", UNTAUGHT),
            train(rest, version, "taught", TAUGHT),
        )
        suite = make_suite(rest, version)
        evaluations = evaluate_three(rest, suite, untaught[-1], taught[-1])
        compare_three(page, suite, evaluations)
        read_whole_answers(page)
        keep_files(page, tmp_path)
        see_matrix_and_steps(page)
        move_an_alias(page, rest, untaught, taught)
        look_at_pages(page)


def compare_three(page: Page, suite: str, evaluations: list[str]) -> None:
    page.goto(f"/evals/suites/{suite}/")
    for name in ("tiny-chatml-1m", "untaught, step 4", "taught, step 80"):
        page.get_by_label(f"Compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare the chosen").click()
    verdict = page.locator(".verdict")
    expect(verdict).to_contain_text("Against tiny-chatml-1m: taught, step 80 is better (+")
    expect(verdict).to_contain_text("untaught, step 4 cannot be told from it")
    row = page.locator(".compared tr").filter(has_text="taught, step 80")
    expect(row.filter(has_not_text="untaught").get_by_text("better")).to_be_visible()
    page.get_by_role("group", name="Cut by").get_by_role("link", name="column sign").click()
    expect(page.get_by_text("adjusted by Holm over the")).to_be_visible()
    expect(page.get_by_text(re.compile("was trained from tiny-chatml-1m")).first).to_be_visible()
    assert all(each in page.url for each in evaluations)


def read_whole_answers(page: Page) -> None:
    address = page.url
    page.locator(".table.compare tbody a").first.click()
    expect(page.get_by_role("heading", name=re.compile("Item .* of short sums"))).to_be_visible()
    page.get_by_role("link", name=re.compile("^[B-H], taught, step 80")).click()
    expect(page.get_by_text("by token")).to_be_visible()
    expect(page.locator(".halves mark").first).to_be_visible()
    page.goto(address)


def keep_files(page: Page, folder: Path) -> None:
    with download(page, "CSV, a line an answer", folder) as file:
        lines = list(csv.DictReader(io.StringIO(file.read_text())))
        assert {line["letter"] for line in lines} == {"A", "B", "C"}
        assert len(lines) % 3 == 0
    with download(page, "One HTML file", folder) as file:
        reader = page.context.new_page()
        fetched: list[str] = []
        reader.on("request", lambda request: fetched.append(request.url))
        reader.goto(file.as_uri())
        expect(reader.get_by_role("heading", level=1)).to_contain_text("taught, step 80 is better")
        expect(reader.locator("mark").first).to_be_visible()
        assert fetched == [file.as_uri()]
        check_page(reader)
        reader.close()


@contextmanager
def download(page: Page, name: str, folder: Path) -> Iterator[Path]:
    menu = page.locator("details.menu").filter(has_text="Export")
    menu.evaluate("menu => { menu.open = true; }")
    with page.expect_download() as started:
        page.get_by_role("link", name=name).click()
    file = folder / started.value.suggested_filename
    started.value.save_as(file)
    yield file


def see_matrix_and_steps(page: Page) -> None:
    views = page.get_by_role("navigation", name="Views")
    views.get_by_role("link", name="Matrix").click()
    row = page.get_by_role("row").filter(has_text="taught, step 80").first
    expect(row.get_by_role("cell").filter(has_text="%").first).to_be_visible()
    views.get_by_role("link", name="Steps").click()
    page.get_by_label("Run", exact=True).select_option(label="taught")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("group", name="Score against step")).to_be_visible()
    expect(page.get_by_role("cell", name="tiny-chatml-1m")).to_be_visible()


def move_an_alias(page: Page, rest: Rest, untaught: list[str], taught: list[str]) -> None:
    """Free, then refused what may be chance, moved to what is better, and taken back."""
    page.goto("/evals/aliases/new/")
    page.get_by_label("Name").fill("answers")
    page.get_by_label("Suite").select_option(label="short sums")
    page.get_by_role("button", name="Make alias").click()
    ask(page, untaught[-1])
    expect(page.get_by_text("It named nothing before.")).to_be_visible()
    ask(page, untaught[0])  # nobody has evaluated that
    expect(page.get_by_text(re.compile("That is not better at 95 %"))).to_be_visible(
        timeout=PATIENCE_MS
    )
    assert rest.get("aliases/answers")["checkpoint"] == untaught[-1]
    ask(page, taught[-1])
    expect(page.get_by_text(re.compile("That is better at 95 %"))).to_be_visible()
    assert say(rest, "answers") == say(rest, taught[-1])
    page.get_by_role("button", name="Roll back to untaught, step 4").click()
    expect(page.get_by_text("Rolled back to untaught, step 4.").first).to_be_visible()
    assert rest.get("aliases/answers")["checkpoint"] == untaught[-1]
    assert [each["outcome"] for each in rest.get("aliases/answers/moves")] == [
        "rolled_back", "moved", "refused", "moved",
    ]  # fmt: skip


def ask(page: Page, checkpoint: str) -> None:
    page.locator("select[name=checkpoint]").select_option(value=checkpoint)
    page.get_by_role("button", name=re.compile("^(Ask to move|Move)$")).click()


def say(rest: Rest, model: str) -> str:
    """What it answers; an alias is a model's name."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is 7 - 3?"}],
        "temperature": 0,
        "max_tokens": 4,
    }
    answer = rest.client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return str(answer["choices"][0]["message"]["content"])


def look_at_pages(page: Page) -> None:
    """In both themes; and on a telephone nothing scrolls sideways but what is inside a table."""
    alias = page.url
    page.goto("/evals/matrix/")
    compared = page.get_by_title("Compare with the baseline").first.get_attribute("href") or ""
    answers = compared.replace("compare/", "compare/answers/") + "&item=0"
    cut = compared + "&slice=column sign"
    for address in (alias, "/evals/aliases/", "/evals/matrix/", "/evals/steps/", cut, answers):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(address)
            check_page(page)
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
        page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/evals/compare/")
    check_page(page)
