"""What differs between evaluations beside their scores, in words short enough for a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from webapp.core.templatetags.hone import rate
from webapp.evals.judges import write_judges
from webapp.evals.models import Evaluation
from webapp.evals.naming import name_subject

DIGESTS = ("digest", "template", "suite")
UNTRAINED = "not: the base model as it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row: what it is called, and how it stood with each."""

    name: str
    values: tuple[str, ...]
    is_digest: bool = False


def list_changes(*evaluations: Evaluation) -> list[Change]:
    """A base model has no settings of a run: beside it, a run's are one sentence."""
    are_runs = all(each.checkpoint is not None for each in evaluations)
    described = [_describe(each, in_full=are_runs) for each in evaluations]
    names = dict.fromkeys(name for each in described for name in each)
    return [
        Change(
            name=name,
            values=tuple(each.get(name, "") for each in described),
            is_digest=name in DIGESTS,
        )
        for name in names
        if len({each.get(name, "") for each in described}) > 1
    ]


def _describe(evaluation: Evaluation, *, in_full: bool) -> dict[str, str]:
    described = {"weights": name_subject(evaluation)}
    if in_full:
        described |= _describe_run(evaluation)
    else:
        described["trained"] = _sum_up_run(evaluation)
    described |= dict(_write_values(evaluation.served.get("sampling", {})))
    described |= {name: evaluation.served.get(name, "") for name in ("digest", "template")}
    judges = evaluation.served.get("judges", {})
    return described | {f"{name} by": write_judges(digests) for name, digests in judges.items()}


def _sum_up_run(evaluation: Evaluation) -> str:
    checkpoint = evaluation.checkpoint
    if checkpoint is None:
        return UNTRAINED
    run = checkpoint.run
    data = f" on {run.dataset_version}" if run.dataset_version else ""
    peak = run.config.get("learning_rate")
    shape = "all weights" if checkpoint.is_full else f"rank {checkpoint.rank}"
    speed = f", learning rate {rate(peak)}" if peak else ""
    return f"{checkpoint.step:,} steps{data}, {shape}{speed}"


def _describe_run(evaluation: Evaluation) -> dict[str, str]:
    checkpoint = evaluation.checkpoint
    assert checkpoint is not None
    run = checkpoint.run
    facts = {
        "step": f"{checkpoint.step:,}",
        "rank": "all weights" if checkpoint.is_full else str(checkpoint.rank),
        "dataset": str(run.dataset_version) if run.dataset_version else "its program's own",
    }
    settings = {key: value for key, value in run.config.items() if key != "rank"}
    return facts | dict(_write_values(settings))


def _write_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _write_values(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", write_value(key, value)


def write_value(key: str, value: object) -> str:
    """A setting as a person says it: `4 prompts`, `yes`, `1e-4`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"{len(value)} {key if len(value) != 1 else key.removesuffix('s')}"
    if isinstance(value, float):
        return rate(value) if key == "learning_rate" else f"{value:g}"
    return "" if value is None else str(value)
