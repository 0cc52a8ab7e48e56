"""The prompts that a run pins where nobody named any."""

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from tests.webapp.cast import make_actor, make_run
from training.data.batches import split_held_out
from training.data.validate import read_normalised
from training.recipes.sft_config import SftConfig
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.runs.models import Run
from workers.prompts import pin_prompts

pytestmark = pytest.mark.django_db


def write_row(number: int) -> str:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number}"},
    ]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def run(tmp_path: Path, settings: Settings) -> Run:
    settings.HONE_HOME = tmp_path
    (tmp_path / "rows.jsonl").write_text("".join(write_row(number) for number in range(100)))
    alice = make_actor()
    version = DatasetVersion.objects.create(
        project=alice.project,
        dataset=Dataset.objects.create(project=alice.project, name="d"),
        number=1,
        filename="rows.jsonl",
        format="jsonl",
        upload_path="x",
        rows_path="rows.jsonl",
    )
    run = make_run(alice)
    run.dataset_version = version
    return run


def make_config(**changes: Any) -> SftConfig:
    return SftConfig.from_dict({"held_out_share": 0.2, "sampling": {"every": 5}, **changes})


def test_unnamed_prompts_are_questions_of_held_out_rows(run: Run, tmp_path: Path) -> None:
    config = pin_prompts(run, make_config())
    rows = list(read_normalised(tmp_path / "rows.jsonl"))
    _, held_out = split_held_out(rows, share=0.2, seed=0)
    expected = [list(row.messages[:-1]) for row in held_out[:4]]
    assert [list(prompt) for prompt in config.sampling.prompts] == expected


def test_a_restart_asks_the_same_prompts(run: Run) -> None:
    first = pin_prompts(run, make_config())
    run.refresh_from_db()
    kept = SftConfig.from_dict({"held_out_share": 0.2, "sampling": run.config["sampling"]})
    assert kept.sampling.prompts == first.sampling.prompts
    assert pin_prompts(run, kept) == kept


def test_without_held_out_rows_the_first_rows_are_asked(run: Run) -> None:
    config = pin_prompts(run, make_config(held_out_share=0))
    assert [prompt[-1]["content"] for prompt in config.sampling.prompts] == [  # type: ignore[index]
        f"question {number}" for number in range(4)
    ]


def test_named_prompts_and_runs_that_never_sample_stay_as_they_are(run: Run) -> None:
    for sampling in ({"every": 0}, {"every": 5, "prompts": ["Hello?"]}):
        config = make_config(sampling=sampling)
        assert pin_prompts(run, config) is config
