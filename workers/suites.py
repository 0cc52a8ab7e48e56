"""Where a suite's items come from: rows of a dataset version, tasks made by seed, packaged data."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from django.conf import settings

from training.data.batches import draw, split_held_out
from training.data.demo import demo_rows, find_bfcl
from training.data.messages import Refused, check_prompt, parse_messages
from training.data.rows import Row
from training.data.validate import read_normalised
from training.errors import InvalidInput
from training.recipes.graders import KINDS, choose_column
from training.recipes.lm_task import read_rows
from training.recipes.lm_task_rows import fill_in
from webapp.evals.checks import MAX_ITEMS
from webapp.evals.models import EvalSuite
from workers.grade import JudgeFinder, grade_with_notes
from workers.sandbox import Job, open_sandbox
from workers.suite_items import make_graded

MAKE_SECONDS = 60.0
MAKE_MIB = 2048
MOST_FACTS, LONGEST_FACT = 20, 60  # of a row; letters
CHECKED = 200  # rows that are graded once before the suite is one, where that takes a process each


def make_items(suite: EvalSuite) -> list[dict[str, Any]]:
    if suite.kind == EvalSuite.Kind.LM_EVAL:
        return fill_in(suite.spec["task"], list_task_rows(suite))
    source = suite.spec.get("source", "dataset")
    return [freeze(row, suite.graders) for row in SOURCES[source](suite)]


def list_dataset_rows(suite: EvalSuite) -> list[Row]:
    """Held out by a run with this share and seed. Equal rows count once; a part is drawn by hash,
    so that it does not depend on how the file was sorted.
    """
    if suite.dataset_version is None:
        raise InvalidInput("the suite has no dataset version to take its items from")
    share, seed = suite.selection["held_out_share"], suite.selection["seed"]
    rows = read_normalised(settings.HONE_HOME / suite.dataset_version.rows_path)
    split = partial(
        split_held_out,
        share=share,
        seed=seed,
        by=suite.selection.get("held_out_by", "row"),
        num_splits=suite.dataset_version.num_splits,
    )
    held_out = rows if share >= 1 else split(rows)[1]
    usable = [row for row in held_out if is_usable(row)]
    unique = list({row.key: row for row in reversed(usable)}.values())
    if not unique:
        raise InvalidInput(
            f"No row with an answer is held out at a share of {share:g}: raise held_out_share."
        )
    unique.sort(key=lambda row: draw(row.key, seed=seed, purpose="suite"))
    chosen = unique[: suite.selection.get("limit") or MAX_ITEMS]
    return sorted(chosen, key=lambda row: row.number)


def list_task_rows(suite: EvalSuite) -> list[dict[str, Any]]:
    """What lm-eval gets: the rows that came with the task, or those of a dataset version."""
    if suite.dataset_version is None:
        return read_rows(suite.spec["rows"])
    found = read_normalised(settings.HONE_HOME / suite.dataset_version.rows_path)
    usable = [row for row in found if is_usable(row)][:MAX_ITEMS]
    if not usable:
        raise InvalidInput("the dataset version has no row that asks something")
    return [flatten(row) for row in usable]


def flatten(row: Row) -> dict[str, Any]:
    """A row's columns, with what is asked as `question` and what is wanted as `answer`."""
    frozen = freeze(row, ())
    asked = frozen["messages"]
    told = "\n\n".join(str(message["content"]) for message in asked)
    return {**row.metadata, "question": told, "answer": frozen["target"]}


def is_usable(row: Row) -> bool:
    """It ends with an answer, or asks for one; a preference is neither."""
    if not row.messages or "chosen" in row.metadata:
        return False
    return row.messages[-1]["role"] in ("assistant", "user", "tool")


def make_task_rows(suite: EvalSuite) -> list[Row]:
    """Of a reasoning-gym task: the same for the same seed."""
    spec = suite.spec
    private = {
        "task": spec["task"],
        "seed": spec.get("seed", 0),
        "size": spec.get("size", 100),
        "config": spec.get("config", {}),
    }
    job = Job(kind="make_rows", private=private, seconds=MAKE_SECONDS, memory_mib=MAKE_MIB)
    outcome = open_sandbox().run(job)
    if "error" in outcome:
        raise InvalidInput(str(outcome["error"]))
    if "rows" not in outcome:
        raise InvalidInput(
            f"{private['size']} rows of {spec['task']} took more than {MAKE_SECONDS:g} s or "
            f"{MAKE_MIB} MiB: ask for fewer"
        )
    return [ask(number, each) for number, each in enumerate(outcome["rows"], start=1)]


def ask(number: int, columns: Mapping[str, Any]) -> Row:
    """One question, with every other column beside it."""
    rest = {key: value for key, value in columns.items() if key != "prompt"}
    messages = [{"role": "user", "content": columns["prompt"]}]
    return Row(number=number, messages=messages, metadata=rest)


def list_built_in(suite: EvalSuite) -> list[Row]:
    return BUILT_IN[suite.spec["name"]]()


def list_calls() -> list[Row]:
    """The Berkeley Function Calling Leaderboard's simple calls, from the demo's package."""
    folder = find_bfcl()
    if folder is None:
        raise InvalidInput("bfcl_simple needs the demo's data: make run installs it")
    return list(demo_rows(folder))


def list_sums() -> list[Row]:
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [
        ask(number, {"prompt": f"What is {a} + {b}?", "target": str(a + b)})
        for number, (a, b) in enumerate(pairs, start=1)
    ]


BUILT_IN = {"bfcl_simple": list_calls, "one_digit_sums": list_sums}


def list_given(suite: EvalSuite) -> list[Row]:
    return [read_given(number, item) for number, item in enumerate(suite.spec["items"], start=1)]


def read_given(number: int, item: Mapping[str, Any]) -> Row:
    rest = {key: value for key, value in item.items() if key not in ("messages", "prompt")}
    asked = item.get("messages")
    if asked is None and isinstance(item.get("prompt"), str):
        asked = [{"role": "user", "content": item["prompt"]}]
    try:
        messages = parse_messages(asked)
        check_prompt(messages)
    except Refused as error:
        raise InvalidInput(f"Item {number}: {error}") from error
    return Row(number=number, messages=messages, metadata=rest)


SOURCES = {
    "dataset": list_dataset_rows,
    "reasoning_gym": make_task_rows,
    "built_in": list_built_in,
    "items": list_given,
}


def freeze(row: Row, graders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A last answer is the target, and what is before it the prompt; else the row says it."""
    ends_with_answer = row.messages[-1]["role"] == "assistant"
    asked = row.messages[:-1] if ends_with_answer else row.messages
    target = row.messages[-1]["content"] if ends_with_answer else row.metadata.get("target", "")
    item: dict[str, Any] = {
        "row": row.number,
        "messages": [dict(message) for message in asked],
        "target": target if isinstance(target, str) else json.dumps(target, sort_keys=True),
        "columns": {name: write_column(value) for name, value in pick(row, graders).items()},
    }
    tools = row.metadata.get("tools")
    facts = list_facts(row, item["columns"])
    return (
        item
        | ({"tools": tools} if isinstance(tools, list) else {})
        | ({"metadata": facts} if facts else {})
    )


def list_facts(row: Row, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Short columns that nothing is graded by, such as a level or a topic: comparisons are cut by
    them.
    """
    others = {name: row.metadata[name] for name in row.metadata if name not in ("target", *columns)}
    short = {name: each for name, each in others.items() if is_fact(each)}
    return dict(list(short.items())[:MOST_FACTS])


def is_fact(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_FACT)


def pick(row: Row, graders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row's columns that its graders read."""
    found: dict[str, Any] = {}
    for grader in graders:
        column = choose_column(grader)
        if column and column not in row.metadata and not is_optional(grader, column):
            raise InvalidInput(
                f"Row {row.number} has no column {column}, which the grader {grader['name']} "
                "reads: add it, or choose another grader."
            )
        for name in (column, *KINDS[grader["name"]].also):
            if name in row.metadata:
                found[name] = row.metadata[name]
    return found


def is_optional(grader: Mapping[str, Any], column: str) -> bool:
    return grader["name"] == "json_schema" and column == "schema" and "schema" in grader


def write_column(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def check_items(
    items: Sequence[Mapping[str, Any]],
    graders: Sequence[Mapping[str, Any]],
    judge: JudgeFinder,
) -> None:
    """A suite that cannot be graded is refused now, not after all its answers were made."""
    for grader in graders:
        if KINDS[grader["name"]].place == "judge":
            judge(grader["judge"])
            continue
        some = items if KINDS[grader["name"]].place == "inline" else items[:CHECKED]
        answers = [make_graded(item, item["target"]) for item in some]
        for item, graded in zip(some, grade_with_notes([grader], answers), strict=True):
            if error := graded.errors.get(grader["name"]):
                raise InvalidInput(f"Row {item['row']}, grader {grader['name']}: {error}")
