"""What passing sampler weights are kept: by clients, by use, by size."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run
from tests.webapp.checkpoints.test_services import SAVED
from webapp.checkpoints import retention, services
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.calls import follow_inflight, open_sampling_session, submit_call
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.runs.models import Run, Session

pytestmark = pytest.mark.django_db

LONG_AGO = timedelta(hours=1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setattr(settings, "HONE_HOME", tmp_path)
    monkeypatch.setattr(retention, "KEPT_SAMPLERS", 2)
    monkeypatch.setattr(retention, "KEPT_BYTES", 2500)  # each of them has 1000
    return make_run(make_actor())


def save(run: Run, seq: int, **columns: Any) -> Checkpoint:
    """As a client's sampler at this step, an hour ago, with the client still open."""
    path = f"checkpoints/{run.pk}/{seq}"
    (Path(settings.HONE_HOME) / path).mkdir(parents=True)
    columns = {"is_ephemeral": True, "ttl_seconds": 86_400, **columns}
    checkpoint = services.register_checkpoint(
        run=run,
        kind="sampler",
        name=f"s{seq}",
        seq=seq,
        step=seq,
        path=path,
        saved=SAVED,
        **columns,
    )
    made_at = now() - LONG_AGO + timedelta(seconds=seq)
    Checkpoint.objects.filter(pk=checkpoint.pk).update(created_at=made_at)
    assert run.session is not None
    open_sampling_session(session=run.session, seq_id=seq, checkpoint=checkpoint)
    return checkpoint


def sample(checkpoint: Checkpoint, *, ago: timedelta, status: str = "done") -> None:
    call = submit_call(
        project=checkpoint.project,
        purpose="tinker",
        base_model=checkpoint.base_model,
        payload={},
        checkpoint=checkpoint,
    )
    SamplingCall.objects.filter(pk=call.pk).update(created_at=now() - ago, status=status)


def list_alive() -> list[int]:
    return list(Checkpoint.objects.alive().order_by("seq").values_list("seq", flat=True))


def test_the_longest_unused_go_once_a_run_has_many_and_large_ones(run: Run) -> None:
    saved = [save(run, seq) for seq in range(5)]
    sample(saved[0], ago=timedelta(minutes=20))  # a reference, asked at every step
    assert retention.retire_samplers() == 3
    assert list_alive() == [0, 4]
    assert not services.find_folder(saved[2]).exists()
    assert services.find_folder(saved[4]).exists()
    assert retention.retire_samplers() == 0


def test_small_ones_few_ones_and_fresh_ones_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = [save(run, seq) for seq in range(4)]
    monkeypatch.setattr(retention, "KEPT_BYTES", 4000)
    assert retention.retire_samplers() == 0
    monkeypatch.setattr(retention, "KEPT_BYTES", 2500)
    monkeypatch.setattr(retention, "KEPT_SAMPLERS", 4)
    assert retention.retire_samplers() == 0
    monkeypatch.setattr(retention, "KEPT_SAMPLERS", 2)
    for checkpoint in saved:
        sample(checkpoint, ago=timedelta(minutes=9))
    assert retention.retire_samplers() == 0


def test_one_that_answers_now_or_is_kept_by_a_person_stays(run: Run) -> None:
    saved = [save(run, seq) for seq in range(5)]
    sample(saved[0], ago=timedelta(hours=2), status="running")
    Checkpoint.objects.filter(pk=saved[1].pk).update(is_ephemeral=False)
    assert retention.retire_samplers() == 1
    assert list_alive() == [0, 1, 3, 4]


def test_passing_weights_end_with_their_session(run: Run) -> None:
    save(run, 1)
    save(run, 2, is_ephemeral=False, ttl_seconds=None)
    assert services.expire_checkpoints() == 0
    Session.objects.update(finished_at=now())
    assert services.expire_checkpoints() == 1
    assert list_alive() == [2]


def test_clients_of_inflight_weights_go_on_to_the_newest(run: Run) -> None:
    snapshot = save(run, 0)
    first, second = (save(run, seq, is_inflight=True) for seq in (1, 2))
    assert services.expire_checkpoints() == 0
    assert follow_inflight(second) == 2
    used = SamplingSession.objects.order_by("seq_id").values_list("checkpoint", flat=True)
    assert list(used) == [snapshot.pk, second.pk, second.pk]
    assert services.expire_checkpoints() == 1
    first.refresh_from_db()
    assert first.deleted_at is not None


def test_inflight_weights_whose_client_is_just_being_opened_stay(run: Run) -> None:
    checkpoint = save(run, 1, is_inflight=True)
    SamplingSession.objects.all().delete()
    Checkpoint.objects.filter(pk=checkpoint.pk).update(created_at=now())
    assert services.expire_checkpoints() == 0
