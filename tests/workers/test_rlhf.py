"""The three stages of RLHF over their logs, one after the other, on the tiny model."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.recipes.pairs import differences_over_sums
from tests.workers.cast import make_tiny
from tests.workers.test_rl import drive, read_curve
from training.data.rows import Row
from training.data.validate import dump_row
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.runs import driving
from webapp.runs.models import Run
from webapp.runs.rlhf import create_rlhf

pytestmark = pytest.mark.django_db

Status = Run.Status
ROWS = list(differences_over_sums())[:30]
ANSWERED = [Row(number=1, messages=[*row.messages, *row.metadata["chosen"]]) for row in ROWS]
ASKED = [Row(number=1, messages=row.messages, metadata={"target": "7"}) for row in ROWS]


def make_version(actor: Actor, folder: Path, kind: str, rows: list[Row]) -> DatasetVersion:
    (folder / f"{kind}.jsonl").write_bytes(b"".join(dump_row(row) for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name=kind),
        number=1,
        status=DatasetVersion.Status.READY,
        kind=kind,
        filename="rows.jsonl",
        format="jsonl",
        upload_path="x",
        rows_path=f"{kind}.jsonl",
        num_rows=len(rows),
    )


def test_the_policy_goes_on_from_the_first_stage_and_is_judged_by_the_second(
    actor: Actor, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"rank": 4, "steps": 2, "batch_size": 2, "sampling": {"every": 0}}
    stages = {
        "sft": ("conversation", ANSWERED, {}),
        "reward_model": ("preference", ROWS, {}),
        "rl": ("prompt", ASKED, {"group_size": 2, "max_tokens": 4, "kl_coefficient": 0.05}),
    }
    group = create_rlhf(
        actor=actor,
        origin="rest",
        name="chain",
        base_model=make_tiny(),
        stages={
            recipe: {
                "dataset_version": make_version(actor, tmp_path, kind, rows),
                "config": shared | own,
            }
            for recipe, (kind, rows, own) in stages.items()
        },
    )
    runs = {run.recipe: run for run in group.runs.all()}
    for recipe in stages:
        for follower in Run.objects.filter(after=runs[recipe]):
            assert not driving.take_driver(follower.pk, driver="early")
        ended = drive(runs[recipe])
        assert (ended.status, ended.error, ended.step) == (Status.DONE, "", 2)
    policy = Run.objects.get(pk=runs["rl"].pk)
    assert policy.parent == Checkpoint.objects.get(run=runs["sft"], kind="training")
    judge = Checkpoint.objects.get(run=runs["reward_model"], kind="training")
    asked = SamplingCall.objects.filter(run=policy, checkpoint=judge)
    assert asked.count() >= 2 * 2 * 2 * 2  # steps, prompts, orders, labels
    # Within a group every preference is somebody else's loss.
    assert list(read_curve(policy, "reward/mean").values()) == pytest.approx([0.5, 0.5])
    assert set(read_curve(policy, "kl/reference")) == {1, 2}
    assert not driving.take_driver(policy.pk, driver="again")
