"""Every test of the workers has a state folder of its own, and rows to learn from if it asks."""

import json
from pathlib import Path

import pytest
from pytest_django import Settings

from tests.webapp.cast import make_actor
from webapp.accounts.models import Actor
from webapp.datasets.models import Dataset, DatasetVersion


@pytest.fixture(autouse=True)
def _home(settings: Settings, tmp_path: Path) -> None:
    settings.HONE_HOME = tmp_path


@pytest.fixture
def actor(db: None) -> Actor:
    return make_actor()


@pytest.fixture
def version(actor: Actor, tmp_path: Path) -> DatasetVersion:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {first} and {second}."},
                {"role": "assistant", "content": f"{first} {second}"},
            ]
        }
        for first in words
        for second in words[:3]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="words"),
        number=1,
        status=DatasetVersion.Status.READY,
        filename="rows.jsonl",
        format="jsonl",
        upload_path="rows.jsonl",
        rows_path="rows.jsonl",
        num_rows=len(rows),
    )
