"""lm-eval over an evaluation's rows, in an environment of its own, against our own /v1 door."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings

from training.errors import InvalidInput
from training.recipes.lm_task import NAME, LmTask, read_task
from webapp.accounts.models import ApiKey
from webapp.accounts.services import create_key, revoke_key
from webapp.deployments.models import SamplingCall
from webapp.evals.models import EvalResult, Evaluation
from webapp.evals.services import (
    mark_failed,
    note_progress,
    note_served,
    record_results,
    settle,
)
from workers import leashed
from workers.claims import MAX_ATTEMPTS, claim
from workers.judge import act_for

PROGRAM = settings.ROOT / ".venv-lm-eval" / "bin" / "lm_eval"
POLL_SECONDS = 0.5
INSIDE_LM_EVAL = Path(__file__).parent / "inside_lm_eval"
AT_ONCE = 4
MAX_TOLD = 2000  # characters of a program's own last words
LOG = "log.txt"
READ_BYTES = 64_000  # of its beginning, and as many of its end
# What it says on its log: what an earlier process had asked, and what this one has.
KNOWN = re.compile(r"Cached requests: (\d+), Requests remaining")
ASKED = re.compile(r"Requesting API:[^\r\n]*? (\d+)/(\d+) \[")
URL = "HONE_URL"  # where other machines find this installation


class CancelledError(Exception):
    """Nobody wants its results any more."""


def run_program(evaluation_id: str) -> None:
    rows = Evaluation.objects.select_related(
        "suite", "project", "checkpoint", "base_model", "created_by"
    )
    evaluation = rows.get(pk=evaluation_id)
    with claim(f"program-{evaluation_id}") as attempt:
        if not attempt or evaluation.status != Evaluation.Status.RUNNING:
            return
        if attempt > MAX_ATTEMPTS:
            mark_failed(evaluation, f"The process that ran it ended {MAX_ATTEMPTS} times.")
            return
        with suppress(CancelledError):
            run_lm_eval(evaluation)


def run_lm_eval(evaluation: Evaluation) -> None:
    if not PROGRAM.exists():
        raise InvalidInput("lm-eval is not installed here: run `make lm-eval` once, then evaluate")
    task = read_task(evaluation.suite.spec["task"])
    folder = make_folder(evaluation, task)
    with open_door(evaluation) as secret:
        follow(
            write_command(evaluation, task, folder),
            folder,
            secret,
            partial(watch, evaluation, folder),
        )
    found = read_results(evaluation, task, folder)
    record_results(evaluation, found)
    note_served(evaluation, digest=find_digest(evaluation), program=f"lm-eval, {task.kind}")
    settle(evaluation)
    shutil.rmtree(folder, ignore_errors=True)


def make_folder(evaluation: Evaluation, task: LmTask) -> Path:
    """What is there from a process that died stays: its answers are lm-eval's cache."""
    folder = Path(settings.HONE_HOME) / "evaluations" / evaluation.pk
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    shutil.rmtree(folder / "out", ignore_errors=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(item["doc"]) + "\n" for item in evaluation.suite.items))
    (folder / "tasks" / f"{NAME}.yaml").write_text(task.write(str(rows)))
    return folder


def write_command(evaluation: Evaluation, task: LmTask, folder: Path) -> list[str]:
    is_chat = bool(evaluation.suite.spec.get("is_chat")) and task.kind == "generate_until"
    door = "chat/completions" if is_chat else "completions"
    arguments = {
        "model": name_model(evaluation),
        "base_url": f"{find_url()}/v1/{door}",
        "num_concurrent": str(AT_ONCE),
        "max_retries": "3",
        "tokenized_requests": "False" if task.kind == "generate_until" else "True",
        **choose_tokenizer(evaluation, task),
    }
    return [
        *(str(PROGRAM), "run"),
        *("--model", "local-chat-completions" if is_chat else "local-completions"),
        *(["--apply_chat_template"] if is_chat else []),
        *("--tasks", NAME, "--include_path", str(folder / "tasks")),
        *("--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
        *("--output_path", str(folder / "out"), "--log_samples"),
        *("--use_cache", str(folder / "answers")),
    ]


def choose_tokenizer(evaluation: Evaluation, task: LmTask) -> dict[str, str]:
    """Log-likelihoods are of tokens: those of the model itself."""
    if task.kind == "generate_until":
        return {"tokenizer_backend": "None"}
    return {"tokenizer_backend": "huggingface", "tokenizer": evaluation.base_model.path}


def name_model(evaluation: Evaluation) -> str:
    return evaluation.checkpoint.pk if evaluation.checkpoint else evaluation.base_model.name


def find_url() -> str:
    return os.environ.get(URL) or f"http://127.0.0.1:{settings.PORT}"


@contextmanager
def open_door(evaluation: Evaluation) -> Iterator[str]:
    """A key for this one program, which ends with it; and with the next one, if we died."""
    actor = act_for(evaluation.project, evaluation.created_by)
    name = f"lm-eval of {evaluation.pk}"
    for left in ApiKey.objects.filter(project=evaluation.project, name=name, revoked_at=None):
        revoke_key(actor=actor, key_id=left.pk)
    key, secret = create_key(actor=actor, name=name)
    try:
        yield secret
    finally:
        revoke_key(actor=actor, key_id=key.pk)


def follow(command: list[str], folder: Path, secret: str, check: Callable[[], None]) -> None:
    """Until it has ended; it ends with us, and when nobody wants it any more."""
    log = folder / LOG
    with log.open("wb") as sink:
        program = subprocess.Popen(
            [sys.executable, "-I", leashed.__file__, *command],
            cwd=settings.ROOT,
            env=write_environment(folder, secret),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        while program.poll() is None:
            check()
            time.sleep(POLL_SECONDS)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    if program.returncode:
        end = log.read_text(errors="replace").replace(secret, "...").strip()[-MAX_TOLD:]
        raise InvalidInput(f"lm-eval ended with {program.returncode}: {end}")


def write_environment(folder: Path, secret: str) -> dict[str, str]:
    """Nothing of ours but the key; and no way to a hub."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "TQDM_MININTERVAL": "1",  # seconds between two lines of its log
        "PYTHONPATH": str(INSIDE_LM_EVAL),
        "OPENAI_API_KEY": secret,
    }


def watch(evaluation: Evaluation, folder: Path) -> None:
    """Raises CancelledError where nobody wants it any more, else says how far it is."""
    check_wanted(evaluation)
    with (folder / LOG).open("rb") as log:
        told = log.read(READ_BYTES)
        log.seek(max(len(told), log.seek(0, os.SEEK_END) - READ_BYTES))
        told += log.read()
    done, total = count_answers(told.decode(errors="replace"))
    note_progress(evaluation, done * evaluation.suite.num_items // max(1, total))


def count_answers(log: str) -> tuple[int, int]:
    """The answers that lm-eval has, and how many it wants: one for each choice of a row."""
    known = [int(each) for each in KNOWN.findall(log)]
    asked = [(int(done), int(total)) for done, total in ASKED.findall(log)]
    done, total = asked[-1] if asked else (0, 0)
    return done + sum(known[-1:]), total + sum(known[-1:])


def check_wanted(evaluation: Evaluation) -> None:
    live = Evaluation.objects.filter(pk=evaluation.pk, status=Evaluation.Status.RUNNING)
    if not live.exists():
        raise CancelledError


def read_results(evaluation: Evaluation, task: LmTask, folder: Path) -> list[EvalResult]:
    """One for each row, by the task's first filter."""
    found: dict[int, Mapping[str, Any]] = {}
    for path in sorted((folder / "out").rglob(f"samples_{NAME}_*.jsonl")):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found.setdefault(int(sample["doc_id"]), sample)
    return [
        make_result(evaluation, task, index, found.get(index))
        for index in range(evaluation.suite.num_items)
    ]


def make_result(
    evaluation: Evaluation, task: LmTask, index: int, sample: Mapping[str, Any] | None
) -> EvalResult:
    result = EvalResult(evaluation=evaluation, index=index, checkpoint=evaluation.checkpoint)
    if sample is None:
        result.error = "lm-eval says nothing of this row."
        return result
    result.scores = {name: float(sample[name]) for name in task.metrics if name in sample}
    result.digest = find_digest(evaluation)
    if task.kind == "generate_until":
        result.completion = str(sample["resps"][0][0])
        return result
    likelihoods = [float(response[0][0]) for response in sample["resps"]]
    choices = [arguments["arg_1"] for arguments in sample["arguments"].values()]
    best = likelihoods.index(max(likelihoods))
    result.completion = choices[best]
    told = [f"{value:.4f}  {choice!r}" for value, choice in zip(likelihoods, choices, strict=True)]
    result.notes = {task.metrics[0]: "Log-likelihood of each choice:\n" + "\n".join(told)}
    return result


def find_digest(evaluation: Evaluation) -> str:
    """Of the weights that answered: those of the newest call of these, as its load proved them."""
    calls = SamplingCall.objects.filter(
        project=evaluation.project,
        purpose=SamplingCall.Purpose.OPENAI,
        base_model=evaluation.base_model,
        checkpoint=evaluation.checkpoint,
        status=SamplingCall.Status.DONE,
    )
    newest = calls.select_related("hot_load").order_by("-pk").first()
    if newest is None:
        return ""
    return newest.hot_load.digest if newest.hot_load else evaluation.base_model.digest
