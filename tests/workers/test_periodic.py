"""The beat finds what nobody's request sets off."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks

from tests.webapp.cast import make_actor, make_base_model, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.core.dispatch import GPU_TURN, TRAIN_RUN
from webapp.runs import queue
from webapp.runs.models import Operation, Run, Session
from workers import periodic
from workers.celery import app

pytestmark = pytest.mark.django_db

NAMES = ("alice", "bob", "carol")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    """What was sent to other workers: name, arguments, queue."""
    messages: list[tuple[str, Any, str]] = []

    def send(name: str, args: Any = (), queue: str = "", countdown: Any = None) -> None:
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
    assert names == {"beat.kick", "beat.sweep", "beat.clean"}
    assert names <= set(app.tasks)
