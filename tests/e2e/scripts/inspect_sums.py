"""A task of inspect-ai: sums of one digit, answered in a chat."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

SUMS = [(a, b) for a in (1, 2) for b in (3, 4)]


@task
def sums() -> Task:
    dataset = [Sample(input=f"What is {a} + {b}?", target=str(a + b)) for a, b in SUMS]
    return Task(dataset=dataset, solver=[generate()], scorer=match(numeric=True))
