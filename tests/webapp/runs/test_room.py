"""What a run takes of a worker's memory is said before it begins; what cannot fit is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.rest.test_rest import make_client
from tests.webapp.runs.test_pages_launch import fill, make_version
from training.memory import Memory
from training.shapes import ModelShape
from training.types import LoraSpec
from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion, Preview
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.services import add_base_model
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model() -> BaseModel:
    return add_base_model(path=str(TINY), names=["tiny"])


@pytest.fixture
def version(alice: Actor, base_model: BaseModel) -> DatasetVersion:
    """Rows of 100 tokens; one has 400."""
    version = make_version(alice)
    stats = {"mean_tokens": 100, "longest_tokens": 400}
    Preview.objects.create(version=version, base_model=base_model, stats=stats)
    return version


def offer(room: int, name: str = "w1") -> None:
    memory = {"device": "cpu", "room": room, "token_budget": 4096}
    Worker.objects.create(name=name, kind=Worker.Kind.GPU, holds={"memory": memory})


def send(client: Client, path: str, body: Mapping[str, object]) -> Any:
    return client.post(path, body, content_type="application/json")


def predict(num_tokens: int, rank: int = 32) -> int:
    memory = Memory(shape=ModelShape.read(TINY), spec=LoraSpec(rank=rank))
    return memory.predict(num_tokens).total


@pytest.mark.usefixtures("version")
def test_the_form_says_what_a_run_takes_of_the_worker_with_most_memory(browser: Client) -> None:
    offer(2 * 10**9)
    offer(3 * 10**9, "w2")
    page = browser.get("/runs/new/")
    need = page.context["forecast"].need
    assert need.footprint.total == predict(800)  # 8 rows of 100 tokens are one pass
    assert (need.worker, need.num_tokens, need.problem) == ("w2", 800, "")
    assert "of 2.8 GiB on w2" in page.content.decode()
    assert "Gaps of the allocator" in page.content.decode()


@pytest.mark.usefixtures("version")
def test_where_no_worker_tells_its_memory_nothing_is_said_or_refused(browser: Client) -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU)
    page = browser.get("/runs/new/")
    assert page.context["forecast"].need is None
    assert browser.post("/runs/new/", fill(page)).status_code == 302


@pytest.mark.usefixtures("version")
def test_a_row_that_does_not_fit_is_refused_with_what_to_change(browser: Client) -> None:
    offer(predict(300))
    page = browser.get("/runs/new/")
    assert "It does not fit: the longest row has 400 tokens" in page.content.decode()
    assert "disabled" in page.content.decode().partition('form="launch"')[2][:40]
    refused = browser.post("/runs/new/", fill(page))
    assert refused.status_code == 400
    said = str(refused.context["form"].errors["max_length"])
    assert "hold 300 of them for this run; set the longest row to 300 tokens at most" in said
    launched = browser.post("/runs/new/", fill(page, max_length="300", batch_size="3"))
    assert launched.status_code == 302
    assert Run.objects.get().predicted_bytes == predict(300)


@pytest.mark.usefixtures("version")
def test_a_run_that_is_too_large_itself_is_told_which_of_its_parts_is(browser: Client) -> None:
    offer(5_000_000)
    page = browser.get("/runs/new/")
    refused = browser.post("/runs/new/", fill(page, rank="512"))
    assert "choose a smaller rank" in str(refused.context["form"].errors["rank"])
    assert not Run.objects.exists()


@pytest.mark.usefixtures("base_model")
def test_rest_answers_with_the_same_numbers(alice: Actor, version: DatasetVersion) -> None:
    offer(10**9)
    body = {"base_model": "tiny", "dataset_version": version.pk, "config": {"rank": 8}}
    client = make_client(alice)
    memory = send(client, "/rest/runs/forecast", body).json()["memory"]
    assert memory["bytes"] == predict(800, rank=8) == sum(memory["parts"].values())
    assert (memory["worker"], memory["worker_bytes"], memory["problem"]) == ("w1", 10**9, "")
    Worker.objects.all().delete()
    offer(predict(300, rank=8))
    forecast = send(client, "/rest/runs/forecast", body).json()["memory"]
    refused = send(client, "/rest/runs", body)
    assert refused.status_code == 400
    assert forecast["problem"][1:] in refused.json()["error"]["message"]
    assert not Run.objects.exists()


def test_a_models_folder_that_is_gone_is_no_reason_to_refuse(
    alice: Actor, version: DatasetVersion
) -> None:
    offer(1)
    BaseModel.objects.update(path="/models/gone")
    body = {"base_model": "tiny", "dataset_version": version.pk}
    answer = send(make_client(alice), "/rest/runs/forecast", body)
    assert answer.json()["memory"] is None


@pytest.mark.usefixtures("version")
def test_a_runs_page_says_what_was_predicted_and_measured(
    browser: Client,
) -> None:
    offer(10**9)
    browser.post("/runs/new/", fill(browser.get("/runs/new/")))
    run = Run.objects.get()
    Run.objects.update(predicted_bytes=3 << 20, peak_bytes=7 << 19)
    page = browser.get(f"/runs/{run.pk}/?tab=config").content.decode()
    assert "3.0 MiB predicted, 3.5 MiB measured" in " ".join(page.split())
