"""The beat finds what nobody's request sets off."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from kombu.exceptions import OperationalError
from pytest_django import DjangoCaptureOnCommitCallbacks

from tests.webapp.cast import make_actor, make_base_model, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.core.dispatch import GPU_TURN, TRAIN_RUN, send_task
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.evals.models import EvalSuite, Evaluation
from webapp.runs import queue
from webapp.runs.models import Operation, Run, Session
from workers import periodic, recipe
from workers.celery import app

pytestmark = pytest.mark.django_db

NAMES = ("alice", "bob", "carol")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    """What was sent to other workers: name, arguments, queue."""
    messages: list[tuple[str, Any, str]] = []

    def send(name: str, args: Any = (), queue: str = "", **_: Any) -> None:
        messages.append((name, args, queue))

    monkeypatch.setattr(app, "send_task", send)
    return messages


def test_waiting_operations_are_announced_to_who_may_take_them(
    sent: list[tuple[str, Any, str]],
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    queue.submit_operation(make_run(make_actor()), seq=0, kind="create_model", payload=b"{}")
    with django_capture_on_commit_callbacks(execute=True):
        periodic.kick()
    assert sent == [(GPU_TURN, (), "gpu")]


def test_a_run_whose_driver_died_is_sent_for_again(
    sent: list[tuple[str, Any, str]],
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    run = make_run(make_actor())
    Run.objects.filter(pk=run.pk).update(
        recipe="sft", driver="dead", driver_until=now() - timedelta(seconds=1)
    )
    with django_capture_on_commit_callbacks(execute=True):
        periodic.kick()
        periodic.kick()
    assert sent == [(TRAIN_RUN, (run.pk,), "cpu")]


def test_gaps_sessions_and_lifetimes_run_out() -> None:
    run = make_run(make_actor())
    waiting = queue.submit_operation(run, seq=3, kind="optim_step", payload=b"{}")
    Operation.objects.update(created_at=now() - timedelta(minutes=5))
    periodic.sweep()
    waiting.refresh_from_db()
    assert waiting.status == Operation.Status.FAILED
    checkpoint = make_checkpoint(run, expires_at=now() - timedelta(seconds=1))
    Session.objects.update(heartbeat_at=now() - timedelta(minutes=11))
    periodic.clean()
    checkpoint.refresh_from_db()
    run.refresh_from_db()
    assert checkpoint.deleted_at is not None
    assert run.status == Run.Status.DONE


def test_autosaves_of_runs_that_are_over_go(settings: Any, tmp_path: Path) -> None:
    settings.HONE_HOME = tmp_path
    live, over, fresh = (make_run(make_actor(name), make_base_model(name)) for name in NAMES)
    for name in (live.pk, over.pk, fresh.pk, "run-unknown"):
        (tmp_path / "autosaves" / name / "5-abc").mkdir(parents=True)
    Run.objects.filter(pk=over.pk).update(ended_at=now() - timedelta(minutes=11))
    Run.objects.filter(pk=fresh.pk).update(ended_at=now())
    periodic.discard_autosaves()
    kept = {path.name for path in (tmp_path / "autosaves").iterdir()}
    assert kept == {live.pk, fresh.pk}


def test_every_beat_names_a_task_that_exists() -> None:
    names = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert names == {"beat.kick", "beat.look", "beat.sweep", "beat.clean"}
    assert names <= set(app.tasks)


def test_what_a_dead_process_of_this_machine_drove_is_sent_for_at_once(
    sent: list[tuple[str, Any, str]],
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ours = recipe.name_driver()
    dead = f"{recipe.HOST}.{child.pid}.0.0"
    elsewhere = f"other.{child.pid}.0.0"
    before_a_restart = f"{recipe.HOST}.{os.getpid()}.0.0"
    runs = {}
    for driver in (ours, dead, elsewhere, before_a_restart):
        runs[driver] = make_run(make_actor(driver), make_base_model(driver))
        Run.objects.filter(pk=runs[driver].pk).update(
            status="running",
            recipe="sft",
            driver=driver,
            driver_until=now() + timedelta(seconds=60),
        )
    with django_capture_on_commit_callbacks(execute=True):
        periodic.kick()
    expected = {runs[dead].pk, runs[before_a_restart].pk}
    assert {arguments[0] for _, arguments, _ in sent} == expected


def test_versions_suites_and_evaluations_whose_message_was_lost_are_sent_for_again(
    sent: list[tuple[str, Any, str]],
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    actor = make_actor()
    dataset = Dataset.objects.create(project=actor.project, name="rows")
    about: dict[str, Any] = {"project": actor.project, "created_at": now() - timedelta(minutes=1)}
    version = DatasetVersion.objects.create(dataset=dataset, number=1, size_bytes=1, **about)
    suites = [
        EvalSuite.objects.create(name=status, status=status, dataset_version=version, **about)
        for status in ("building", "ready")
    ]
    evaluations = [
        Evaluation.objects.create(suite=suite, base_model=make_base_model(suite.pk), **about)
        for suite in suites
    ]
    with django_capture_on_commit_callbacks(execute=True):
        periodic.sweep()
    assert sorted(arguments[0] for _, arguments, _ in sent) == sorted(
        [version.pk, suites[0].pk, evaluations[1].pk]
    )


def test_a_message_that_cannot_be_sent_does_not_fail_what_was_committed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("Connection refused")

    monkeypatch.setattr(app, "send_task", refuse)
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        send_task(TRAIN_RUN, "run-1")
    assert len(callbacks) == 1
    assert "runs.train is announced later: Connection refused" in caplog.text
