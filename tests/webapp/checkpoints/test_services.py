"""Checkpoints are registered once, found by their path, kept while needed, and deleted."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run
from training.types import Probe, SavedWeights
from webapp.accounts.models import Actor
from webapp.checkpoints import services
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.deployments.calls import open_sampling_session
from webapp.deployments.models import Deployment, SamplingSession
from webapp.runs.models import Metric, Run

pytestmark = pytest.mark.django_db

SAVED = SavedWeights(
    digest="d" * 64,
    size_bytes=1000,
    has_optimizer=True,
    probe=Probe(tokens=(1, 2, 3), logprobs=(-1.0, -2.0)),
)


@pytest.fixture
def actor() -> Actor:
    return make_actor()


@pytest.fixture
def run(actor: Actor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setattr(settings, "HONE_HOME", tmp_path)
    return make_run(actor)


def register(run: Run, **changes: Any) -> Checkpoint:
    columns = {"kind": "training", "name": "half", "seq": 5, "step": 2, **changes}
    path = f"checkpoints/{run.pk}/{columns['name']}-{columns['seq']}"
    folder = Path(settings.HONE_HOME) / path
    folder.mkdir(parents=True, exist_ok=True)
    return services.register_checkpoint(run=run, path=path, saved=SAVED, **columns)


def exists(checkpoint: Checkpoint) -> bool:
    return services.find_folder(checkpoint).exists()


def expire(*checkpoints: Checkpoint) -> int:
    pks = [checkpoint.pk for checkpoint in checkpoints]
    Checkpoint.objects.filter(pk__in=pks).update(expires_at=now() - timedelta(seconds=1))
    return services.expire_checkpoints()


def test_the_same_operation_registers_one_checkpoint(run: Run) -> None:
    first = register(run)
    assert register(run) == first
    assert first.probe == {"tokens": [1, 2, 3], "logprobs": [-1.0, -2.0]}
    assert (first.base_model, first.rank, first.has_optimizer) == (run.base_model, run.rank, True)


def test_a_name_is_taken_until_it_is_overwritten(run: Run) -> None:
    first = register(run)
    with pytest.raises(UserError, match="named half already"):
        services.check_name(run, "training", "half", overwrite=False)
    services.check_name(run, "sampler", "half", overwrite=False)
    second = register(run, seq=9, overwrite=True)
    first.refresh_from_db()
    assert first.deleted_at is not None
    assert not exists(first)
    assert exists(second)


def test_one_that_is_sampled_from_lives_on_under_another_name_when_it_is_overwritten(
    actor: Actor, run: Run
) -> None:
    first = register(run)
    assert run.session is not None
    sampler = open_sampling_session(session=run.session, seq_id=0, checkpoint=first)
    second = register(run, seq=9, overwrite=True)
    first.refresh_from_db()
    assert (first.deleted_at, first.name) == (None, "half~5")
    assert exists(first)
    assert services.find_by_tinker_path(actor, second.tinker_path) == second
    assert services.expire_checkpoints() == 0
    type(run.session).objects.filter(pk=sampler.session_id).update(finished_at=now())
    assert services.expire_checkpoints() == 1
    assert not exists(first)
    assert exists(second)


def test_one_that_is_used_at_the_last_moment_is_not_deleted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = register(run, ttl_seconds=3600)
    assert run.session is not None
    session = run.session

    def open_and_say_no(_: Checkpoint) -> bool:
        open_sampling_session(session=session, seq_id=0, checkpoint=checkpoint)
        return False

    monkeypatch.setattr(services, "is_best", open_and_say_no)
    expire(checkpoint)
    checkpoint.refresh_from_db()
    assert checkpoint.deleted_at is None
    assert exists(checkpoint)


def test_a_checkpoint_is_found_by_the_path_that_the_sdk_was_told(actor: Actor, run: Run) -> None:
    training, sampler = register(run), register(run, kind="sampler", seq=6)
    for checkpoint in (training, sampler):
        assert services.find_by_tinker_path(actor, checkpoint.tinker_path) == checkpoint


@pytest.mark.parametrize(
    "path",
    [
        "half",
        "tinker://a/b",
        "tinker://a/weights/b/c",
        "file://a/weights/b",
        "tinker://a/x/b",
        "tinker://a/weights/\0",
    ],
)
def test_what_is_no_path_is_refused(actor: Actor, path: str) -> None:
    with pytest.raises(UserError, match="no checkpoint's path"):
        services.find_by_tinker_path(actor, path)


def test_another_projects_checkpoint_does_not_exist_unless_it_is_public(
    actor: Actor, run: Run
) -> None:
    checkpoint, stranger = register(run), make_actor("carol")
    for path in (checkpoint.tinker_path, "tinker://s:train:x/weights/a", "tinker://r/weights/a"):
        with pytest.raises(NotFound):
            services.find_by_tinker_path(stranger, path)
    with pytest.raises(NotFound):
        services.set_public(actor=stranger, checkpoint=checkpoint, is_public=True)
    services.set_public(actor=actor, checkpoint=checkpoint, is_public=True)
    assert services.find_by_tinker_path(stranger, checkpoint.tinker_path) == checkpoint
    with pytest.raises(NotFound):
        services.delete_checkpoint(actor=stranger, checkpoint=checkpoint)


def test_an_expired_one_loses_its_folder_and_keeps_its_row(run: Run) -> None:
    checkpoint = register(run, ttl_seconds=3600)
    assert services.expire_checkpoints() == 0
    assert expire(checkpoint) == 1
    checkpoint.refresh_from_db()
    assert checkpoint.deleted_at is not None
    assert not exists(checkpoint)


def test_what_was_kept_does_not_expire(actor: Actor, run: Run) -> None:
    checkpoint = register(run, ttl_seconds=3600, is_ephemeral=True)
    services.keep_checkpoint(actor=actor, checkpoint=checkpoint)
    assert (checkpoint.expires_at, checkpoint.is_ephemeral) == (None, False)
    services.set_lifetime(actor=actor, checkpoint=checkpoint, ttl_seconds=60)
    assert checkpoint.expires_at is not None


def test_what_is_served_sampled_or_a_parent_is_neither_expired_nor_deleted(
    actor: Actor, run: Run
) -> None:
    served, sampled, parent = (register(run, name=name, seq=seq) for seq, name in enumerate("abc"))
    deployment = Deployment.objects.create(
        project=run.project, name="d", base_model=run.base_model, checkpoint=served
    )
    assert run.session is not None
    SamplingSession.objects.create(
        project=run.project,
        session=run.session,
        seq_id=1,
        base_model=run.base_model,
        checkpoint=sampled,
    )
    branch = make_run(make_actor("dora"), run.base_model)
    Run.objects.filter(pk=branch.pk).update(parent=parent)
    assert expire(served, sampled, parent) == 0
    with pytest.raises(UserError, match="in use"):
        services.delete_checkpoint(actor=actor, checkpoint=served)
    Deployment.objects.filter(pk=deployment.pk).update(status=Deployment.Status.STOPPED)
    type(run.session).objects.filter(pk=run.session.pk).update(finished_at=now())
    Run.objects.filter(pk=branch.pk).update(status=Run.Status.DONE)
    assert expire(served, sampled, parent) == 3


def test_a_parent_may_go_once_its_branch_has_saved_what_it_loaded(actor: Actor, run: Run) -> None:
    parent = register(run)
    first, second = (make_run(make_actor(name), run.base_model) for name in ("dora", "eve"))
    Run.objects.filter(pk__in=[first.pk, second.pk]).update(parent=parent)
    Run.objects.filter(pk=first.pk).update(autosave_seq=0)
    with pytest.raises(UserError, match="about to begin with it"):
        services.delete_checkpoint(actor=actor, checkpoint=parent)
    Run.objects.filter(pk=second.pk).update(autosave_seq=3)
    services.delete_checkpoint(actor=actor, checkpoint=parent)
    assert not exists(parent)


def test_the_best_of_a_run_does_not_expire(run: Run) -> None:
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5)):
        Metric.objects.create(run=run, step=step, key="held_out_loss", value=loss)
    best = register(run, step=2)
    later = register(run, name="later", seq=8, step=3)
    assert expire(best, later) == 1
    best.refresh_from_db()
    assert best.deleted_at is None


def test_a_deleted_one_cannot_be_deleted_or_kept_again(actor: Actor, run: Run) -> None:
    checkpoint = register(run)
    services.delete_checkpoint(actor=actor, checkpoint=checkpoint)
    assert not exists(checkpoint)
    with pytest.raises(NotFound):
        services.delete_checkpoint(actor=actor, checkpoint=checkpoint)
    with pytest.raises(NotFound):
        services.keep_checkpoint(actor=actor, checkpoint=checkpoint)
    with pytest.raises(NotFound, match="expired or been deleted"):
        services.find_by_tinker_path(actor, checkpoint.tinker_path)
