"""Tasks of lm-eval: what is one here, and what its rows ask and want."""

import json
from typing import Any

import pytest
import yaml

from training.errors import InvalidInput
from training.recipes.lm_task import NAME, PLAIN, make_items, read_rows, read_task

CHOOSE = """
output_type: multiple_choice
doc_to_text: "{{question|trim}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
"""


def test_a_plain_task_asks_the_question_and_wants_the_answer() -> None:
    task = read_task(PLAIN)
    [item] = make_items(task, [{"question": "2 + 2?", "answer": 4}])
    assert item["messages"] == [{"role": "user", "content": "2 + 2?"}]
    assert (item["target"], item["row"]) == ("4", 1)
    assert item["doc"] == {"question": "2 + 2?", "answer": 4}
    assert task.metrics == ["exact_match"]
    assert task.sampling == {"max_tokens": 64, "temperature": 0.0, "seed": 1234}


def test_of_choices_the_right_one_is_wanted_by_its_place_or_its_text() -> None:
    task = read_task(CHOOSE)
    row = {"question": " Which? ", "choices": ["a", "b"], "gold": 1}
    [item] = make_items(task, [row])
    assert (item["messages"][0]["content"], item["target"]) == ("Which?", "b")
    assert task.metrics == ["acc", "acc_norm"]
    listed = read_task(CHOOSE.replace('"{{choices}}"', '["a", "b"]'))
    assert make_items(listed, [row])[0]["target"] == "b"


def test_the_file_for_lm_eval_has_our_rows_and_our_name_whatever_it_said() -> None:
    own = "task: mine\ndataset_path: somewhere/else\ndataset_kwargs: {data_dir: /etc}\n"
    written = yaml.safe_load(read_task(own + PLAIN).write("/rows.jsonl"))
    assert written["task"] == NAME
    assert written["dataset_path"] == "json"
    assert written["dataset_kwargs"] == {"data_files": {"test": "/rows.jsonl"}}
    assert written["doc_to_text"] == "{{question}}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a YAML file"),
        ("[1]", "not a YAML file"),
        ("a: [", "not plain YAML"),
        (f"metadata: &a [x, x]\ntag: [*a, *a]\n{PLAIN}", "refers to its own parts"),
        (f"{PLAIN}process_docs: !function utils.process\n", "not plain YAML"),
        (f"{PLAIN}include: other.yaml\n", "include is not known here"),
        (f"{PLAIN}process_results: x\n", "process_results is not known here"),
        (f"{PLAIN}num_fewshot: 3\n", "few-shot"),
        ("output_type: loglikelihood_rolling\n", "output_type is one of"),
        ("output_type: generate_until\ndoc_to_target: x\n", "no doc_to_text"),
        ("output_type: multiple_choice\ndoc_to_text: x\ndoc_to_target: x\n", "no doc_to_choice"),
        (PLAIN.replace("exact_match", "bleu"), "'bleu' has no score of its own"),
        (PLAIN + "x" * 60_000, "more than 50,000"),
    ],
)
def test_what_is_no_task_here_is_said(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_task(text)


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ question.missing() }}", "{% for x in %}", "{{ 1 // 0 }}"],
)
def test_a_template_that_cannot_be_filled_in_or_reaches_too_far_is_refused(template: str) -> None:
    task = read_task(PLAIN.replace('"{{question}}"', json.dumps(template)))
    with pytest.raises(InvalidInput, match="cannot be filled in"):
        make_items(task, [{"question": "?", "answer": "!"}])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 rows"),
        ("{}", "line 1 of the rows is not an object"),
        ('{"a": 1}\n[', "line 2 of the rows is not JSON"),
        ('{"a": 1}\n' * 2001, "has 2001 rows"),
    ],
)
def test_rows_that_are_none_are_told_by_their_line(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_rows(text)


def test_blank_lines_between_rows_do_not_count() -> None:
    rows: list[dict[str, Any]] = read_rows('\n{"a": 1}\n\n{"a": 2}\n')
    assert rows == [{"a": 1}, {"a": 2}]
