"""lm-eval, unmodified, as a suite of this installation: launched by REST."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.live import Live

pytestmark = pytest.mark.e2e

WAIT_SECONDS = 240
SUMS = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in (1, 2) for b in (3, 4)]
GENERATE = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 8}
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["4", "5", "6", "7"]
doc_to_target: "{{['4', '5', '6', '7'].index(answer)}}"
"""


@pytest.fixture(scope="module")
def api(live: Live) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {live.api_key}"}
    with httpx.Client(base_url=f"{live.url}/rest/", headers=headers, timeout=60) as client:
        yield client


def read(response: httpx.Response) -> Any:
    assert response.status_code < 300, response.text
    return response.json()


def evaluate(api: httpx.Client, suite: dict[str, Any]) -> dict[str, Any]:
    asked = {"suite": suite["id"], "base_model": "tiny-chatml-1m"}
    evaluation = read(api.post("evaluations", json=asked))
    deadline = time.monotonic() + WAIT_SECONDS
    while evaluation["status"] not in ("done", "failed"):
        assert time.monotonic() < deadline, evaluation
        time.sleep(1)
        evaluation = read(api.get(f"evaluations/{evaluation['id']}"))
    assert evaluation["status"] == "done", evaluation["error"]
    return dict(evaluation)


def make_suite(api: httpx.Client, name: str, task: str, **more: Any) -> dict[str, Any]:
    rows = "".join(json.dumps(row) + "\n" for row in SUMS)
    body = {"name": f"{name} {time.time_ns()}", "task": task, "rows": rows, **more}
    return dict(read(api.post("suites/lm-eval", json=body)))


def test_answers_that_lm_eval_asks_for_are_rows_with_scores(api: httpx.Client, live: Live) -> None:
    evaluation = evaluate(api, make_suite(api, "sums asked", GENERATE, is_chat=True))
    results = read(api.get(f"evaluations/{evaluation['id']}/results"))
    assert [result["index"] for result in results] == [0, 1, 2, 3]
    for row, result in zip(SUMS, results, strict=True):
        right = float(row["answer"] == result["completion"].strip())
        assert result["scores"] == {"exact_match": right}
    mean = sum(result["scores"]["exact_match"] for result in results) / 4
    assert evaluation["scores"] == {"exact_match": pytest.approx(mean)}
    assert mean >= 0.5  # the model knows these sums
    assert evaluation["served"]["digest"] == results[0]["digest"] != ""
    keys = live.manage(
        "from webapp.accounts.models import ApiKey\n"
        f"rows = ApiKey.objects.filter(name='lm-eval of {evaluation['id']}')\n"
        "print(rows.exists(), rows.filter(revoked_at=None).exists())"
    )
    assert keys == "True False"


def test_choices_by_log_likelihood_are_those_that_the_model_itself_finds_likely(
    api: httpx.Client, live: Live
) -> None:
    evaluation = evaluate(api, make_suite(api, "sums chosen", CHOOSE))
    assert set(evaluation["scores"]) == {"acc", "acc_norm"}
    results = read(api.get(f"evaluations/{evaluation['id']}/results"))
    first = results[0]
    told = dict(reversed(line.split("  ")) for line in first["notes"]["acc"].splitlines()[1:])
    asked = httpx.post(
        f"{live.url}/v1/completions",
        headers={"Authorization": f"Bearer {live.api_key}"},
        json={
            "model": "tiny-chatml-1m",
            "prompt": f"{SUMS[0]['question']} 4",
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,
            "temperature": 0,
        },
        timeout=60,
    ).json()["choices"][0]["logprobs"]
    place = asked["text_offset"].index(len(SUMS[0]["question"]))
    own = sum(asked["token_logprobs"][place:-1])
    assert math.isclose(float(told["' 4'"]), own, abs_tol=2e-3)
    best = max(told, key=lambda choice: float(told[choice]))
    assert first["completion"] == best.strip("'")
