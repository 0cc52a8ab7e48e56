"""lm-eval as a program: how it is begun, what it sees, how it ends. The real one: tests/e2e."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, sign_in
from training.errors import InvalidInput
from training.recipes.lm_task import PLAIN, read_task
from webapp.accounts.models import Actor, ApiKey, Role
from webapp.accounts.services import create_key
from webapp.core.errors import UserError
from webapp.evals import services
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.task_suites import create_task_suite
from webapp.fleet.models import BaseModel, BaseModelName
from workers import leashed, lm_eval
from workers.claims import claim
from workers.tasks import build_suite, run_program

ROWS = '{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}\n'
Status = Evaluation.Status


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def base_model(db: None) -> BaseModel:
    model = BaseModel.objects.create(path="/models/tiny", digest="base")
    BaseModelName.objects.create(base_model=model, name="tiny")
    return model


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    made = create_task_suite(actor=alice, name="sums", task=PLAIN, rows=ROWS)
    build_suite(made.pk)
    made.refresh_from_db()
    return made


@pytest.fixture
def evaluation(alice: Actor, suite: EvalSuite, base_model: BaseModel, settings: Any) -> Evaluation:
    evaluation = services.request_evaluation(actor=alice, suite=suite, base_model=base_model)
    assert services.begin_evaluation(evaluation)
    evaluation.refresh_from_db()
    return evaluation


def pretend(folder: Path, body: str) -> Path:
    """A program in lm-eval's place."""
    program = folder / "program"
    program.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n")
    program.chmod(0o755)
    return program


ANSWERS = """
out = sys.argv[sys.argv.index("--output_path") + 1]
os.makedirs(out + "/tiny")
with open(out + "/tiny/samples_hone_task_now.jsonl", "w") as file:
    for number, text in enumerate(("2", "5")):
        sample = {"doc_id": number, "resps": [[text]], "exact_match": float(text == "2")}
        file.write(json.dumps(sample) + chr(10))
"""


def run(
    evaluation: Evaluation, folder: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    monkeypatch.setattr(lm_eval, "PROGRAM", pretend(folder, body))
    run_program(evaluation.pk)
    evaluation.refresh_from_db()
    return evaluation


def test_a_task_and_its_rows_are_frozen_under_one_digest(alice: Actor, suite: EvalSuite) -> None:
    assert (suite.status, suite.num_items) == (EvalSuite.Status.READY, 2)
    assert [item["target"] for item in suite.items] == ["2", "4"]
    assert suite.graders == [{"name": "exact_match"}]
    assert "rows" not in suite.spec
    other = create_task_suite(actor=alice, name="other", task=PLAIN.replace("64", "32"), rows=ROWS)
    build_suite(other.pk)
    other.refresh_from_db()
    assert other.digest != suite.digest


def test_only_an_owner_gives_a_task_and_what_is_none_is_refused(alice: Actor) -> None:
    member = replace(alice, role=Role.MEMBER)
    with pytest.raises(UserError, match="Only an owner"):
        create_task_suite(actor=member, name="sums", task=PLAIN, rows=ROWS)
    for columns, field in (
        ({"task": "a: ["}, "task"),
        ({"rows": "{"}, "rows"),
        ({"rows": ""}, "dataset_version"),
        ({"name": " "}, "name"),
    ):
        wanted: dict[str, Any] = {"name": "sums", "task": PLAIN, "rows": ROWS} | columns
        with pytest.raises(UserError) as refused:
            create_task_suite(actor=alice, **wanted)
        assert refused.value.field == field


def test_what_it_says_of_each_row_is_a_result(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(evaluation, tmp_path, ANSWERS, monkeypatch)
    assert (done.status, done.scores, done.num_done) == (Status.DONE, {"exact_match": 0.5}, 2)
    assert [each.completion for each in done.results.all()] == ["2", "5"]
    assert done.served["program"] == "lm-eval, generate_until"


def test_it_sees_its_key_and_nothing_else_of_ours_and_the_key_ends_with_it(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_SECRET_OF_OURS", "x")
    body = f"json.dump(dict(os.environ), open({str(tmp_path / 'seen')!r}, 'w'))\n{ANSWERS}"
    run(evaluation, tmp_path, body, monkeypatch)
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen.pop("OPENAI_API_KEY").startswith("tml-")
    assert set(seen) - {"LC_CTYPE"} == {
        "PATH", "HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
        "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "TQDM_MININTERVAL", "PYTHONPATH",
    }  # fmt: skip
    key = ApiKey.objects.get(name=f"lm-eval of {evaluation.pk}")
    assert key.revoked_at is not None


def test_templates_reach_nothing_but_their_rows_in_its_own_process_too(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
from jinja2 import BaseLoader, Environment, StrictUndefined
fill = Environment(loader=BaseLoader, undefined=StrictUndefined).from_string
print(fill("{{ question }}").render(question="1 + 1?"))
print(fill("{{ lipsum.__globals__['os'].getpid() }}").render())
"""
    failed = run(evaluation, tmp_path, body, monkeypatch)
    assert failed.status == Status.FAILED
    assert "SecurityError" in failed.error
    assert "1 + 1?" in failed.error


def test_what_it_ends_with_is_said_without_its_key(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "sys.exit('The door is closed for ' + os.environ['OPENAI_API_KEY'])"
    failed = run(evaluation, tmp_path, body, monkeypatch)
    assert failed.status == Status.FAILED
    assert failed.error == "lm-eval ended with 1: The door is closed for ..."
    assert not ApiKey.objects.filter(revoked_at=None).exists()


def test_a_row_that_it_does_not_speak_of_is_an_error_of_that_row(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(evaluation, tmp_path, ANSWERS.replace('("2", "5")', '("2",)'), monkeypatch)
    assert (done.status, done.scores) == (Status.DONE, {"exact_match": 1.0})
    assert done.results.get(index=1).error == "lm-eval says nothing of this row."


def test_where_it_is_not_installed_the_evaluation_says_how_it_is(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_eval, "PROGRAM", tmp_path / "nothing")
    run_program(evaluation.pk)
    evaluation.refresh_from_db()
    assert "make lm-eval" in evaluation.error


def test_one_that_nobody_wants_any_more_is_ended(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Actor
) -> None:
    checks = []

    def check(each: Evaluation) -> None:
        checks.append(each.pk)
        services.cancel_evaluation(actor=alice, evaluation=evaluation)
        original(each)

    original = lm_eval.check_wanted
    monkeypatch.setattr(lm_eval, "check_wanted", check)
    body = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    ended = run(evaluation, tmp_path, body, monkeypatch)
    assert ended.status == Status.CANCELLED
    assert checks == [evaluation.pk]
    pid = tmp_path / "pid"
    assert not pid.exists() or not Path(f"/proc/{pid.read_text()}").exists()


@pytest.mark.parametrize(
    ("log", "counted"),
    [
        ("", (0, 0)),
        ("Checking cached requests: 100%|###| 8/8 [00:00<00:00]\n", (0, 0)),
        ("\rRequesting API:   0%|   | 0/8 [00:00<?, ?it/s]", (0, 8)),
        ("\rRequesting API: 0%|  | 0/8 [00:00]\rRequesting API: 38%|#  | 3/8 [00:01<00:0", (3, 8)),
        ("Cached requests: 6, Requests remaining: 2\n\rRequesting API: 50%|# | 1/2 [0", (7, 8)),
        ("Cached requests: 8, Requests remaining: 0\n", (8, 8)),
    ],
)
def test_what_it_says_on_its_log_is_counted(log: str, counted: tuple[int, int]) -> None:
    assert lm_eval.count_answers(log) == counted


def test_how_far_it_is_is_told_while_it_runs_and_forgotten_where_nothing_came_of_it(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Actor
) -> None:
    _, secret = create_key(actor=alice, name="k")
    headers = {"authorization": f"Bearer {secret}"}
    told: list[tuple[int, str]] = []

    def listen(each: Evaluation, num_done: int) -> None:
        original(each, num_done)
        if num_done:
            rest = Client().get(f"/rest/evaluations/{each.pk}", headers=headers).json()
            told.append((rest["num_done"], sign_in(alice).get(f"/evals/{each.pk}/").text))
            services.cancel_evaluation(actor=alice, evaluation=evaluation)

    original = services.note_progress
    monkeypatch.setattr(lm_eval, "note_progress", listen)
    body = """
print("x" * 200_000)
print("Requesting API:  50%|####    | 2/4 [00:01<00:01,  1.9it/s]", end=chr(13), flush=True)
time.sleep(600)"""
    ended = run(evaluation, tmp_path, body, monkeypatch)
    [(num_done, page)] = told
    assert num_done == 1  # of two rows, each of two choices
    assert "1 of 2 answered" in page
    assert "its answers come all at once" in page
    assert (ended.status, ended.num_done) == (Status.CANCELLED, 0)


def test_it_is_announced_again_while_it_runs_and_only_one_process_is_at_it(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, ...]] = []
    monkeypatch.setattr(services, "send_task", lambda *args: sent.append(args))
    services.settle_abandoned()
    services.announce_waiting()
    assert sent == []  # it has just begun
    long_ago = now() - timedelta(minutes=1)
    Evaluation.objects.filter(pk=evaluation.pk).update(started_at=long_ago)
    services.announce_waiting()
    assert sent == [("evals.run_program", evaluation.pk)]
    with claim(f"program-{evaluation.pk}"):
        run_program(evaluation.pk)
    evaluation.refresh_from_db()
    assert evaluation.status == Status.RUNNING


def test_a_program_on_a_leash_ends_with_whoever_began_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    command = [sys.executable, "-I", leashed.__file__, str(pretend(tmp_path, body))]
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"]
    )
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    while is_alive(int(pid.read_text())):
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """One that nobody has reaped is dead all the same."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_template_that_reaches_too_far_is_refused_before_it_runs(alice: Actor) -> None:
    task = PLAIN.replace("{{question}}", "{{ ''.__class__.__mro__ }}")
    with pytest.raises(UserError, match="cannot be filled in"):
        create_task_suite(actor=alice, name="sly", task=task, rows=ROWS)
    huge = PLAIN.replace("{{question}}", "{{ 'x' * 10 ** 11 }}")
    with pytest.raises(UserError, match="need more memory or time"):
        create_task_suite(actor=alice, name="huge", task=huge, rows=ROWS)
    with pytest.raises(InvalidInput):
        read_task("a: [")
