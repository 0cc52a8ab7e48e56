"""The Data tab: rows by what they cost, never learned and risen, with text and sparkline."""

import json
from pathlib import Path

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from tests.webapp.cast import make_actor, make_run, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.runs.models import Run
from webapp.runs.row_losses import MAX_ROW_LOSSES, read_trajectories, record_row_losses

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


@pytest.fixture
def run(alice: Actor, tmp_path: Path, settings: Settings) -> Run:
    settings.HONE_HOME = tmp_path
    rows = [{"prompt": f"question {n}", "completion": "x"} for n in range(1, 5)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": "x"},
            ]
        }
        for row in rows
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    version = DatasetVersion.objects.create(
        project=alice.project,
        dataset=Dataset.objects.create(project=alice.project, name="sums"),
        number=1,
        status="ready",
        rows_path="rows.jsonl",
        num_rows=4,
    )
    run = make_run(alice)
    Run.objects.filter(pk=run.pk).update(dataset_version=version, recipe="sft")
    run.refresh_from_db()
    # 1 is learned, 2 never, 3 is forgotten, 4 was seen once
    record_row_losses(run, 1, {1: 2.0, 2: 2.0, 3: 0.5})
    record_row_losses(run, 2, {1: 0.1, 2: 1.95, 3: 0.9, 4: 0.2})
    return run


def read(client: Client, run: Run, query: str = "") -> str:
    response = client.get(f"/runs/{run.pk}/?tab=data{query}")
    assert response.status_code == 200
    return response.content.decode()


def test_rows_are_grouped_and_shown_with_their_text(alice: Actor, run: Run) -> None:
    client = sign_in(alice)
    page = read(client, run)
    assert "Never learned 2" in page
    assert "Loss rose 1" in page
    assert page.count("<polyline") == 3
    page = read(client, run, "&rows=never_learnt")
    assert "question 2 / x" in page
    assert "question 1" not in page
    assert f"/datasets/versions/{run.dataset_version_id}/derive/?run={run.pk}" in page
    assert "question 3" in read(client, run, "&rows=rose")


def test_rows_are_sorted_by_every_column_both_ways(alice: Actor, run: Run) -> None:
    client = sign_in(alice)

    def order(sort: str) -> list[int]:
        page = read(client, run, f"&sort={sort}")
        return sorted(range(1, 5), key=lambda number: page.index(f"question {number} /"))

    assert order("row") == [1, 2, 3, 4]
    assert order("-row") == [4, 3, 2, 1]
    assert order("-last") == [2, 3, 4, 1]
    assert order("change")[0] == 1
    assert order("nonsense") == order("-last")


def test_a_replay_records_nothing_twice_and_a_long_run_is_bounded(run: Run) -> None:
    record_row_losses(run, 2, {1: 0.1, 2: 1.95})
    record_row_losses(run, MAX_ROW_LOSSES, {1: 0.1, 2: 1.95})
    record_row_losses(run, 3, {1: float("inf")})
    assert [each.steps for each in read_trajectories(run)] == [[1, 2], [1, 2], [1, 2], [2]]


def test_a_run_without_rows_says_so_and_a_lost_file_is_no_error(alice: Actor, run: Run) -> None:
    DatasetVersion.objects.update(rows_path="gone.jsonl")
    assert "Never learned 2" in read(sign_in(alice), run)
    run.row_losses.all().delete()
    assert "No row was learned from yet" in read(sign_in(alice), run)


def test_rest_gives_trajectories(alice: Actor, run: Run) -> None:
    _, secret = create_key(actor=alice, name="tests")
    client = Client(headers={"X-API-Key": secret})
    url = f"/rest/runs/{run.pk}/row-losses"
    assert client.get(f"{url}?rows=rose").json() == [
        {"row": 3, "steps": [1, 2], "losses": [0.5, 0.9]}
    ]
    assert [each["row"] for each in client.get(f"{url}?after=2").json()] == [3, 4]
    assert client.get(f"{url}?rows=poems").status_code == 400
    assert client.get(f"{url}?after=-1").status_code == 400
    _, other = create_key(actor=make_actor("charlie"), name="tests")
    assert Client(headers={"X-API-Key": other}).get(url).status_code == 404
