"""A project with a lineage of 500 nodes, as a team leaves one behind after some weeks."""

from datetime import timedelta
from typing import Any

from django.utils.timezone import now

from webapp.accounts.models import User
from webapp.accounts.services import create_project
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run

NUM_VERSIONS, NUM_RUNS, NUM_SAVED, NUM_SERVED, NUM_NAMED = 6, 22, 12, 6, 2
NUM_EVALUATIONS = 200  # of the checkpoints, by turns on two suites
NUM_NODES = NUM_VERSIONS + NUM_RUNS * (1 + NUM_SAVED) + NUM_EVALUATIONS + NUM_SERVED + NUM_NAMED


def seed_project(
    user: User | None = None, project: Any = None, base: BaseModel | None = None
) -> User:
    """Every third run branches from the one before it; a version derives from the one before."""
    user = user or User.objects.create_user("bench")
    project = project or create_project(user=user, name="Bench")
    base = base or _make_base()
    versions = _make_versions(project)
    saved = _make_runs(project, base, versions)
    _evaluate(project, base, versions[0], saved)
    for number in range(NUM_SERVED):
        served = saved[number * 37 + 11]
        Deployment.objects.create(
            project=project,
            name=f"endpoint-{number}",
            base_model=base,
            checkpoint=served,
            status=Deployment.Status.STOPPED,
        )
    for name, place in (("prod", 47), ("best", 131))[:NUM_NAMED]:
        Alias.objects.create(project=project, name=name, checkpoint=saved[place])
    return user


def _make_base() -> BaseModel:
    base = BaseModel.objects.create(path="/models/bench", num_parameters=135_000_000)
    BaseModelName.objects.create(base_model=base, name="bench/SmolLM2-135M")
    return base


def _make_versions(project: Any) -> list[DatasetVersion]:
    dataset = Dataset.objects.create(project=project, name="support-conversations")
    versions: list[DatasetVersion] = []
    for number in range(1, NUM_VERSIONS + 1):
        version = DatasetVersion.objects.create(
            project=project,
            dataset=dataset,
            number=number,
            status="ready",
            filename="rows.jsonl",
            num_rows=12_000 - 700 * number,
            digest=f"{number:064x}",
            derived_from=versions[-1] if number % 3 == 0 else None,
        )
        versions.append(version)
    return versions


def _make_runs(project: Any, base: BaseModel, versions: list[DatasetVersion]) -> list[Checkpoint]:
    saved: list[Checkpoint] = []
    for number in range(NUM_RUNS):
        is_branch = number % 3 == 2
        run = Run.objects.create(
            project=project,
            name=f"Support tone, rank {8 * 2 ** (number % 3)}, attempt {number + 1}",
            origin=Origin.BROWSER,
            recipe="sft",
            status="done",
            base_model=base,
            rank=8 * 2 ** (number % 3),
            dataset_version=versions[number % NUM_VERSIONS],
            parent=saved[-4] if is_branch else None,
            step=NUM_SAVED * 100,
            last_loss=2.0 / (number + 1),
            created_at=now() - timedelta(days=NUM_RUNS - number),
        )
        saved += [_save(project, run, 100 * (place + 1)) for place in range(NUM_SAVED)]
    return saved


def _save(project: Any, run: Run, step: int) -> Checkpoint:
    return Checkpoint.objects.create(
        project=project,
        run=run,
        base_model_id=run.base_model_id,
        name=f"step-{step:06d}",
        kind=Checkpoint.Kind.TRAINING,
        step=step,
        seq=step,
        path=f"checkpoints/{run.pk}/{step}",
        digest=f"{step:064x}",
        size_bytes=1_500_000_000,
        rank=run.rank,
        has_optimizer=True,
        created_at=run.created_at + timedelta(minutes=step),
    )


def _evaluate(
    project: Any, base: BaseModel, version: DatasetVersion, saved: list[Checkpoint]
) -> None:
    suites = [
        EvalSuite.objects.create(
            project=project,
            name=name,
            dataset_version=version,
            status="ready",
            graders=[{"name": "exact_match"}],
            sampling={"max_tokens": 64, "temperature": 0.0},
            num_items=500,
        )
        for name in ("tone, held out", "refund policy")
    ]
    for number in range(NUM_EVALUATIONS):
        Evaluation.objects.create(
            project=project,
            suite=suites[number % 2],
            base_model=base,
            checkpoint=saved[number],
            status="done",
            scores={"exact_match": (number * 37 % 100) / 100},
        )
