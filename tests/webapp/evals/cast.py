"""Suites and evaluations as rows, without anything that sampled them."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run

serial = count()


def make_version(actor: Actor, name: str = "", **columns: Any) -> DatasetVersion:
    dataset = Dataset.objects.create(project=actor.project, name=name or f"rows {next(serial)}")
    defaults = {
        "number": 1,
        "filename": "rows.jsonl",
        "format": "jsonl",
        "status": DatasetVersion.Status.READY,
    }
    return DatasetVersion.objects.create(
        project=actor.project, dataset=dataset, **defaults | columns
    )


def make_suite(actor: Actor, size: int, **columns: Any) -> EvalSuite:
    """Of two graders; each item's target is its number."""
    version = make_version(actor)
    defaults = {
        "name": version.dataset.name,
        "status": EvalSuite.Status.READY,
        "graders": [{"name": "exact_match"}, {"name": "contains"}],
        "sampling": {"max_tokens": 8, "temperature": 0.0, "seed": 0},
        "items": [make_item(n) for n in range(size)],
        "num_items": size,
        "digest": "5u17e" * 12,
    }
    return EvalSuite.objects.create(
        project=actor.project, dataset_version=version, **defaults | columns
    )


def make_item(number: int, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is number {number}?"}]
    return {"messages": messages, "target": str(number), "row": number, **columns}


def find_model(name: str = "model") -> BaseModel:
    model, is_new = BaseModel.objects.get_or_create(path=f"/models/{name}")
    if is_new:
        BaseModelName.objects.create(base_model=model, name=name)
    return model


def make_trained(actor: Actor, name: str = "tuned", step: int = 10, **columns: Any) -> Checkpoint:
    """A checkpoint of a run by this name; `run_columns` go to the run."""
    run, _ = Run.objects.get_or_create(
        project=actor.project,
        name=name,
        defaults={
            "origin": Origin.BROWSER,
            "base_model": find_model(),
            "rank": 8,
            **columns.pop("run_columns", {}),
        },
    )
    return make_checkpoint(run, name=f"step-{step}", step=step, **columns)


def make_evaluation(
    suite: EvalSuite,
    scores: Sequence[float | Sequence[float] | None],
    name: str = "model",
    texts: Mapping[int, str] | None = None,
    **columns: Any,
) -> Evaluation:
    """Done, with an answer for each score, several where there are several, an error for None."""
    checkpoint = columns.get("checkpoint")
    model = checkpoint.base_model if checkpoint else find_model(name)
    defaults = {"status": Evaluation.Status.DONE, "base_model": model, "num_done": len(scores)}
    evaluation = Evaluation.objects.create(project=suite.project, suite=suite, **defaults | columns)
    EvalResult.objects.bulk_create(
        EvalResult(
            evaluation=evaluation,
            index=index,
            sample=sample,
            completion=(texts or {}).get(index, f"{name} {index}"),
            num_tokens=3,
            scores={} if each is None else {"exact_match": each, "contains": 1.0},
            error="It was cancelled." if each is None else "",
        )
        for index, score in enumerate(scores)
        for sample, each in enumerate(score if isinstance(score, Sequence) else [score])
    )
    Evaluation.objects.filter(pk=evaluation.pk).update(scores=average(evaluation))
    evaluation.refresh_from_db()
    return evaluation


def average(evaluation: Evaluation) -> dict[str, float]:
    found = [each.scores for each in evaluation.results.filter(error="")]
    names = [grader["name"] for grader in evaluation.suite.graders]
    return {name: sum(each[name] for each in found) / len(found) for name in names if found}
