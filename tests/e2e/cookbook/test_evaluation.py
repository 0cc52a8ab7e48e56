"""Evaluation, stock: evaluators inside a run, benchmarks on their own, and decisions."""

import json

import pytest

from tests.e2e.cookbook.cookbook import Cookbook, check_run, read_lines
from tests.e2e.cookbook.hub import CHAT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_run_is_evaluated_on_its_way(cookbook: Cookbook) -> None:
    outcome = cookbook.train("evaluators.py", f"model_name={CHAT}")
    check_run(outcome, "evaluators", steps=2)
    # Before each of the steps and after the last: a benchmark, a judge of one's own, a test set.
    for name in ("eval/gsm8k/score", "accuracy", "surprise", "test/env/all/correct"):
        assert len(outcome.read_curve(name)) == 3, name
    assert max(outcome.read_curve("eval/gsm8k/score")) > 0
    surprises = outcome.read_curve("surprise")
    assert surprises[0] > 0
    assert surprises[-1] != surprises[0]
    # The policy begins as the model that it may not leave.
    assert outcome.read_curve("kl_policy_base")[0] == pytest.approx(0, abs=1e-4)


def test_benchmarks_are_run_once_and_read_again(cookbook: Cookbook) -> None:
    folder = cookbook.make_folder()
    flags = (f"save_dir={folder}", f"model_name={CHAT}", "renderer_name=qwen3_instruct")
    first = json.loads(cookbook.run("benchmarks.py", *flags).splitlines()[-1])
    score, num_examples, num_errors = first["gsm8k"]
    assert (num_examples, num_errors) == (16, 0)
    assert score > 0.2
    assert first["mmlu_pro"][1:] == [16, 0]
    kept = read_lines(folder / "gsm8k" / "trajectories.jsonl")
    again = json.loads(cookbook.run("benchmarks.py", *flags).splitlines()[-1])
    assert again == first
    assert read_lines(folder / "gsm8k" / "trajectories.jsonl") == kept


def test_decisions_are_trained_on_their_probabilities(cookbook: Cookbook) -> None:
    told = cookbook.run("decisions.py", f"model_name={CHAT}", "renderer_name=qwen3_instruct")
    before, for_even, for_odd = json.loads(told.splitlines()[-1])
    assert sum(before.values()) == pytest.approx(1, abs=1e-5)
    assert for_even["even"] > max(0.9, before["even"])
    assert for_odd["odd"] > 0.9
