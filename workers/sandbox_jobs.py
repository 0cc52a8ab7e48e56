"""From a grader and an answer to a job of the sandbox, and from what it says to a score."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from training.errors import InvalidInput
from training.recipes.graders import choose_column
from training.recipes.grading import Answer, find_target
from workers.sandbox import Job

Grader = Mapping[str, Any]
SECONDS = 10.0
MEMORY_MIB = {"unit_tests": 256}
OTHER_MIB = 1024  # sympy is large


def make_job(grader: Grader, answer: Answer) -> Job:
    name = grader["name"]
    public, private = MAKERS[name](grader, answer)
    return Job(
        kind=name,
        public=public,
        private=private,
        seconds=grader.get("seconds", SECONDS),
        memory_mib=grader.get("memory_mib", MEMORY_MIB.get(name, OTHER_MIB)),
    )


def make_math(grader: Grader, answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"completion": answer.completion, "target": find_target(grader, answer)}


def make_schema(grader: Grader, answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = grader["schema"] if "schema" in grader else read_column(grader, answer)
    return {}, {"completion": answer.completion, "schema": schema}


def make_tests(grader: Grader, answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    tests = parse_list(read_column(grader, answer))
    metadata = answer.metadata
    entry = grader.get("entry") or metadata.get("entry_point") or metadata.get("entry") or ""
    is_program = isinstance(tests, list) and bool(tests) and isinstance(tests[0], dict)
    public = {"code": answer.completion, "is_program": is_program}
    partial = grader.get("partial", False)
    return public, {"tests": tests, "entry": str(entry), "partial": partial}


def make_task(grader: Grader, answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    metadata = answer.metadata
    task = grader.get("task") or metadata.get("task") or metadata.get("source_dataset")
    if not isinstance(task, str):
        raise InvalidInput("the row has no column task, and the grader no setting of that name")
    entry = read_column(grader, answer)
    return {}, {"task": task, "completion": answer.completion, "entry": entry}


MAKERS: dict[str, Callable[[Grader, Answer], tuple[dict[str, Any], dict[str, Any]]]] = {
    "math": make_math,
    "json_schema": make_schema,
    "unit_tests": make_tests,
    "reasoning_gym": make_task,
}


def read_column(grader: Grader, answer: Answer) -> Any:
    column = choose_column(grader)
    if column not in answer.metadata:
        raise InvalidInput(f"the row has no column {column}, which {grader['name']} reads")
    return answer.metadata[column]


def parse_list(tests: Any) -> Any:
    """A list may stand in its column as text."""
    if not isinstance(tests, str) or not tests.lstrip().startswith("["):
        return tests
    try:
        return json.loads(tests)
    except ValueError:
        return tests


def read_outcome(job: Job, outcome: Mapping[str, Any]) -> tuple[float, str]:
    """The score and what is to be said of it."""
    if outcome.get("late"):
        return 0.0, f"It took longer than {job.seconds:g} s and was ended."
    if "error" in outcome:
        raise InvalidInput(str(outcome["error"]))
    score = outcome.get("score")
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        return 0.0, "It ended the process that graded it."
    return float(score), str(outcome.get("note", ""))
