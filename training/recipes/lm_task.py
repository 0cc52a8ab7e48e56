"""A task of lm-eval: one YAML file over rows of one JSON-lines file, checked and read.

Only what needs neither a hub nor code of its own is a task here: the keys are named one by one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from training.errors import InvalidInput

NAME = "hone_task"  # the task's own, whatever the file calls it
MAX_ROWS = 2000
MAX_TASK = 50_000
MAX_RENDERED = 50_000
KINDS = ("generate_until", "multiple_choice")
METRICS = ("exact_match", "acc", "acc_norm")  # those with a score of 0 or 1 for every row
DEFAULTS: dict[str, tuple[str, ...]] = {
    "generate_until": ("exact_match",),
    "multiple_choice": ("acc", "acc_norm"),
}
KEYS = {
    "task",
    "task_alias",
    "tag",
    "dataset_path",
    "dataset_kwargs",
    "test_split",
    "output_type",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "generation_kwargs",
    "filter_list",
    "metric_list",
    "metadata",
    "num_fewshot",
}
REPLACED = ("task", "task_alias", "tag", "dataset_path", "dataset_kwargs", "test_split", "metadata")
PLAIN = """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 64}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
"""
renderer = SandboxedEnvironment(autoescape=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LmTask:
    """What the file says, without where its rows are."""

    said: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.said["output_type"])

    @property
    def metrics(self) -> list[str]:
        listed = [each["metric"] for each in self.said.get("metric_list") or ()]
        return listed or list(DEFAULTS[self.kind])

    @property
    def sampling(self) -> dict[str, Any]:
        """As a suite tells it."""
        said = self.said.get("generation_kwargs") or {}
        longest = said.get("max_gen_toks", 256) if self.kind == "generate_until" else 1
        return {"max_tokens": longest, "temperature": said.get("temperature", 0.0), "seed": 1234}

    def write(self, rows: str) -> str:
        """The file that lm-eval reads; `rows` is the path of its data."""
        own = {
            "task": NAME,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": rows}},
            "test_split": "test",
        }
        return yaml.safe_dump({**self.said, **own}, sort_keys=False)

    def ask(self, row: Mapping[str, Any]) -> str:
        return render(self.said["doc_to_text"], row)

    def target(self, row: Mapping[str, Any]) -> str:
        """The text; of several choices the right one's."""
        target = self.said["doc_to_target"]
        found = target if isinstance(target, int) else render(target, row)
        choices = self.said.get("doc_to_choice")
        if self.kind != "multiple_choice" or choices is None:
            return str(found)
        listed = choices if isinstance(choices, list) else parse_choices(render(choices, row))
        number = str(found)
        return (
            str(listed[int(number)]) if number.isdecimal() and int(number) < len(listed) else number
        )


def parse_choices(text: str) -> list[Any]:
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError:
        parsed = None
    return parsed if isinstance(parsed, list) else [text]


def render(template: Any, row: Mapping[str, Any]) -> str:
    """A column by its name, or a template over all of them."""
    if not isinstance(template, str):
        raise InvalidInput("doc_to_text and doc_to_target are texts")
    if template in row:
        return str(row[template])
    try:
        rendered = renderer.from_string(template).render(**row)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInput(f"{template!r:.80} cannot be filled in: {error}") from error
    if len(rendered) > MAX_RENDERED:
        raise InvalidInput(f"{template!r:.80} makes more than {MAX_RENDERED:,} characters")
    return rendered


def read_task(text: str) -> LmTask:
    if len(text) > MAX_TASK:
        raise InvalidInput(f"the task has more than {MAX_TASK:,} characters")
    try:
        # A few of them, each of several of the one before, are more than any memory holds.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InvalidInput("the task refers to its own parts by *: write each out")
        said = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"the task is not plain YAML: {error}") from error
    if not isinstance(said, dict):
        raise InvalidInput("the task is not a YAML file with keys")
    return LmTask(said={key: value for key, value in check(said).items() if key not in REPLACED})


def check(said: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(str(key) for key in said.keys() - KEYS):
        raise InvalidInput(
            f"the task's {unknown[0]} is not known here; a task has {', '.join(sorted(KEYS))}"
        )
    if said.get("output_type") not in KINDS:
        raise InvalidInput(f"the task's output_type is one of {', '.join(KINDS)}")
    for key in ("doc_to_text", "doc_to_target"):
        if key not in said:
            raise InvalidInput(f"the task has no {key}")
    if said["output_type"] == "multiple_choice" and "doc_to_choice" not in said:
        raise InvalidInput("the task has no doc_to_choice")
    if said.get("num_fewshot"):
        raise InvalidInput("the task's rows are all asked, so none is left for few-shot examples")
    check_metrics(said.get("metric_list"))
    return said


def check_metrics(listed: Any) -> None:
    if listed is None:
        return
    is_list = isinstance(listed, list) and all(isinstance(each, Mapping) for each in listed)
    if not is_list or not listed:
        raise InvalidInput("the task's metric_list is a list of {metric: ...}")
    for each in listed:
        if each.get("metric") not in METRICS:
            raise InvalidInput(
                f"the task's metric {each.get('metric')!r:.40} has no score of its own for every "
                f"row; use {', '.join(METRICS)}"
            )


def read_rows(text: str) -> list[dict[str, Any]]:
    rows = [
        read_row(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if not 1 <= len(rows) <= MAX_ROWS:
        raise InvalidInput(f"the task has {len(rows)} rows; it has 1 to {MAX_ROWS}")
    return rows


def read_row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"line {number} of the rows is not JSON: {error}") from error
    if not isinstance(row, dict) or not row:
        raise InvalidInput(f"line {number} of the rows is not an object with columns")
    return row


def make_items(task: LmTask, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As a suite keeps them: what is asked and wanted, and the row that lm-eval gets."""
    return [
        {
            "row": number,
            "messages": [{"role": "user", "content": task.ask(row)}],
            "target": task.target(row),
            "columns": {},
            "doc": dict(row),
        }
        for number, row in enumerate(rows, start=1)
    ]
