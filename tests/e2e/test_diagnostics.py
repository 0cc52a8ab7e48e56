"""Ten failures made by the real SDK, each named on REST, on the pages and to a webhook; healthy
loops beside them are left alone."""

import hmac
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.axe import check_page
from tests.e2e.live import Live
from tests.webhook_server import Server, run_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

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
ANNOTATE = """
from webapp.runs.annotations import annotate
from webapp.runs.models import Run
annotate(Run.objects.get(pk='{run_id}'), 4, 'steering', 'Somebody.')
"""
WAIT_SECONDS = 180
PAGE_MS = 30_000
WIDTHS = (1440, 390)
# What each loop is also caught at: its log-probabilities are made up, or its weights go off.
ALSO = {"reward_hacking": {"sampler_trainer_disagree"}, "off_policy": {"sampler_trainer_disagree"}}
# And what has enough to look at in a loop that does nothing wrong.
HEALTHY = {"healthy": "sequential_client", "healthy_policy": "off_policy"}
NAMED_ELSEWHERE = {*HEALTHY, "refused"}


@pytest.fixture(scope="module")
def api(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=f"{live.url}/rest", headers=headers, timeout=60) as client:
        yield client


def wait_until(holds: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def find_runs(api: httpx.Client, models: dict[str, str]) -> dict[str, str]:
    """The run of each loop, by its name."""
    by_model = {run["model_id"]: run["id"] for run in list_all(api, "/runs")}
    return {name: by_model[model_id] for name, model_id in models.items()}


def list_all(api: httpx.Client, path: str) -> list[dict[str, Any]]:
    answer = api.get(path).json()
    rows: list[dict[str, Any]] = answer["results"]
    while answer["next"]:
        answer = api.get(answer["next"]).json()
        rows += answer["results"]
    return rows


def read_found(api: httpx.Client, run_id: str) -> dict[str, dict[str, Any]]:
    told = api.get(f"/runs/{run_id}/findings").json()
    assert len(told) == 10
    return {each["diagnostic"]: each for each in told if each["state"] == "found"}


def spoil(live: Live, run_id: str) -> None:
    """Somebody's disk or hand: the values of a tensor are others than were saved."""
    (file,) = (live.home / "checkpoints" / run_id).glob("after-ten-*/adapter_model.safetensors")
    content = bytearray(file.read_bytes())
    content[-4096:] = b"\x00\x00\x80\x3f" * 1024
    file.write_bytes(content)


def export(api: httpx.Client, run_id: str) -> None:
    checkpoints = list_all(api, "/checkpoints")
    (checkpoint,) = (
        each["id"] for each in checkpoints if each["run"] == run_id and each["name"] == "after-ten"
    )
    assert api.post(f"/checkpoints/{checkpoint}/exports", json={"kind": "peft"}).status_code < 300


def launch(api: httpx.Client) -> str:
    """A fine-tuning run as the dashboard launches it."""
    files = {"file": ("rows.jsonl", "\n".join(json.dumps(row) for row in ROWS))}
    version = api.post("/dataset-versions", data={"name": "sums"}, files=files).json()["id"]
    path = f"/dataset-versions/{version}"
    wait_until(lambda: api.get(path).json()["status"] == "ready", lambda: api.get(path).text)
    config = {"steps": 40, "batch_size": 16, "learning_rate": 1e-3, "evaluate_every": 8}
    body = {"base_model": "tiny-chatml-1m", "dataset_version": version, "config": config}
    run = api.post("/runs", json=body)
    assert run.status_code == 201, run.text
    return str(run.json()["id"])


def test_each_failure_is_named_and_healthy_loops_are_left_alone(
    live: Live, api: httpx.Client, page: Page
) -> None:
    with run_server() as server:
        hook = api.post("/webhooks", json={"url": server.url, "events": ["diagnostic.*"]}).json()
        recipe = launch(api)
        runs = find_runs(api, live.run("failures.py")["models"])
        see_each_named(api, runs)
        runs["export_differs"] = runs["memorising"]
        spoil(live, runs["memorising"])
        export(api, runs["memorising"])
        differs = see_named(api, "export_differs", runs["export_differs"])
        assert "is damaged: the tensor " in differs["text"], differs
        see_nothing(
            api, {runs[name]: key for name, key in HEALTHY.items()} | {recipe: "memorising"}
        )
        see_told(server, runs, hook["secret"])
        api.delete(f"/webhooks/{hook['id']}")
    see_it_live(page, live, api, runs["non_finite_or_spiking"])
    see_pages(page, runs)
    keep_what_expires(page, api, runs["checkpoint_will_expire"])


def see_named(api: httpx.Client, key: str, run_id: str) -> dict[str, Any]:
    wait_until(
        lambda: key in read_found(api, run_id),
        lambda: f"{key}: {api.get(f'/runs/{run_id}/findings').json()}",
    )
    return read_found(api, run_id)[key]


def see_each_named(api: httpx.Client, runs: dict[str, str]) -> None:
    for name in sorted(runs.keys() - NAMED_ELSEWHERE):
        finding = see_named(api, name, runs[name])
        assert finding["text"].endswith("."), finding
        drawn = api.get(f"/runs/{runs[name]}/annotations").json()
        assert any(finding["title"] in each["text"] for each in drawn), drawn
        others = read_found(api, runs[name]).keys() - {name} - ALSO.get(name, set())
        assert others == set(), (name, others)
    refused = see_named(api, "non_finite_or_spiking", runs["refused"])
    assert (refused["level"], refused["facts"]["batch"][0]["tokens"]) == ("error", 12)
    assert "was refused" in refused["text"]
    spike = read_found(api, runs["non_finite_or_spiking"])["non_finite_or_spiking"]
    assert {each["tokens"] for each in spike["facts"]["batch"]} == {12}
    best = read_found(api, runs["memorising"])["memorising"]["facts"]
    assert best["checkpoints"][0]["name"] == "after-ten"


def see_nothing(api: httpx.Client, looked_for: dict[str, str]) -> None:
    """By run: what had enough to look at there, and found it well."""
    for run_id, key in looked_for.items():
        wait_until(partial(is_clear, api, run_id, key), partial(str, f"{run_id} {key}"))
        assert read_found(api, run_id) == {}, read_found(api, run_id)


def is_clear(api: httpx.Client, run_id: str, key: str) -> bool:
    run = api.get(f"/runs/{run_id}").json()
    assert run["status"] != "failed", run
    states = {
        each["diagnostic"]: each["state"] for each in api.get(f"/runs/{run_id}/findings").json()
    }
    return bool(run["status"] == "done" and states[key] == "clear")


def see_told(server: Server, runs: dict[str, str], secret: str) -> None:
    """The webhook has heard of each, once, and can tell that it was Hone."""
    loops = runs.keys() - NAMED_ELSEWHERE
    wanted = {(f"diagnostic.{name}", runs[name]) for name in loops}
    wait_until(
        lambda: wanted <= {(each["event"], each["run"]) for each in read_heard(server)},
        lambda: f"{wanted} {[(each['event'], each['run']) for each in read_heard(server)]}",
    )
    ids = [each["id"] for each in read_heard(server)]
    assert len(ids) == len(set(ids))
    headers, body = server.got[0]
    moment, signature = (part.partition("=")[2] for part in headers["Hone-Signature"].split(","))
    assert signature == hmac.new(secret.encode(), f"{moment}.".encode() + body, sha256).hexdigest()


def read_heard(server: Server) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in list(server.got)]


def see_it_live(page: Page, live: Live, api: httpx.Client, run_id: str) -> None:
    """What changes on the server changes on the open page."""
    page.goto(f"/runs/{run_id}/")
    findings, chart = page.locator("#run-findings"), page.locator(".js-plotly-plot").first
    expect(findings).to_contain_text("Spiking.", timeout=PAGE_MS)
    expect(page.locator("#run-annotations")).to_contain_text("The loss jumped", timeout=PAGE_MS)
    expect(chart).to_contain_text("found", timeout=PAGE_MS)
    dismissal = f"/runs/{run_id}/findings/non_finite_or_spiking/dismissal"
    assert api.put(dismissal).status_code == 200
    expect(findings).to_be_hidden(timeout=PAGE_MS)
    live.manage(ANNOTATE.format(run_id=run_id))
    expect(page.locator("#run-annotations")).to_contain_text("Somebody.", timeout=PAGE_MS)
    expect(chart).to_contain_text("steered", timeout=PAGE_MS)
    assert api.delete(dismissal).status_code == 200
    expect(findings).to_contain_text("Spiking.", timeout=PAGE_MS)


def see_pages(page: Page, runs: dict[str, str]) -> None:
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for path in ("", "?tab=integrity"):
            page.goto(f"/runs/{runs['non_finite_or_spiking']}/{path}")
            page.wait_for_load_state("networkidle")
            see_fits(page, width)
        for path in ("/runs/", "/", "/settings/webhooks/"):
            page.goto(path)
            see_fits(page, width)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/runs/")
    expect(page.locator("#rows")).to_contain_text("spiking", timeout=PAGE_MS)


def see_fits(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
    check_page(page)


def keep_what_expires(page: Page, api: httpx.Client, run_id: str) -> None:
    """One press on Keep, and it is over."""
    page.goto(f"/runs/{run_id}/?tab=integrity")
    card = page.locator("#checkpoint_will_expire")
    expect(card).to_contain_text("soon-gone is the parent of another run", timeout=PAGE_MS)
    card.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("stays until somebody deletes it")).to_be_visible(timeout=PAGE_MS)
    wait_until(
        lambda: "checkpoint_will_expire" not in read_found(api, run_id), lambda: "it goes on"
    )
