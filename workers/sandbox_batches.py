"""Many small jobs in one process of the sandbox: a fork for each would cost more than its work.

What such a batch does not get to, because one of its jobs hangs or breaks it, runs alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from training.recipes.graders import EVALUATING
from workers.sandbox import Job, Sandbox

SIZE = 32
TOGETHER = ("math", "json_schema", "reasoning_gym")
Outcome = dict[str, Any] | Exception


def run_jobs(
    sandbox: Sandbox, jobs: Sequence[Job], keep_going: Callable[[], None]
) -> list[Outcome]:
    """In the jobs' order."""
    outcomes = run_together(sandbox, jobs, keep_going)
    alone = [number for number in range(len(jobs)) if number not in outcomes]
    found = sandbox.run_all([jobs[number] for number in alone], keep_going)
    outcomes |= zip(alone, found, strict=True)
    return [outcomes[number] for number in range(len(jobs))]


def run_together(
    sandbox: Sandbox, jobs: Sequence[Job], keep_going: Callable[[], None]
) -> dict[int, Outcome]:
    """{number: outcome} of those that were reached."""
    shared = [number for number, job in enumerate(jobs) if may_share(job)]
    if len(shared) < 2:
        return {}
    groups = [shared[at : at + SIZE] for at in range(0, len(shared), SIZE)]
    batches = [make_batch([jobs[number] for number in group]) for group in groups]
    found: dict[int, Outcome] = {}
    for group, batch in zip(groups, sandbox.run_all(batches, keep_going), strict=True):
        done = batch.get("results", []) if isinstance(batch, dict) else []
        found |= zip(group, done, strict=False)
    return found


def may_share(job: Job) -> bool:
    """Not those whose answers are evaluated: they could rewrite their neighbours' scores."""
    return job.kind in TOGETHER and job.private.get("task") not in EVALUATING


def make_batch(jobs: Sequence[Job]) -> Job:
    return Job(
        kind="batch",
        private={"jobs": [[job.kind, job.private] for job in jobs]},
        seconds=max(job.seconds for job in jobs),
        memory_mib=max(job.memory_mib for job in jobs),
    )
