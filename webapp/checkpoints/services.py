"""Every write to checkpoints: registered once, kept, expired, deleted, found by their path."""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils.timezone import now

from training.types import SavedWeights
from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor
from webapp.checkpoints.chains import check_no_deltas, hold_previous, lock, without_deltas
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish, run_group
from webapp.runs.models import Metric, Run

PATH_KINDS = {word: kind for kind, word in Checkpoint.PATH_WORDS.items()}
LIVE = ("queued", "running")
OPENING = timedelta(minutes=5)  # a sampling client is opened moments after its weights are saved


def find_saved(run: Run, seq: int) -> Checkpoint | None:
    """What the operation with this seq saved before its worker died, if it came so far."""
    return Checkpoint.objects.filter(run=run, seq=seq).first()


def check_name(run: Run, kind: str, name: str, *, overwrite: bool) -> None:
    """Before anything is written: a name stands for one checkpoint of a run and kind."""
    taken = Checkpoint.objects.alive().filter(run=run, kind=kind, name=name).exists()
    if taken and not overwrite:
        raise UserError(
            f"This run has a checkpoint named {name} already: choose another name, or say "
            "overwrite.",
            field="path",
        )


def register_checkpoint(  # noqa: PLR0913 - the row's columns, by name
    *,
    run: Run,
    kind: str,
    name: str,
    seq: int,
    step: int,
    path: str,
    saved: SavedWeights,
    previous: Checkpoint | None = None,
    export_milliseconds: float | None = None,
    ttl_seconds: int | None = None,
    is_ephemeral: bool = False,
    is_inflight: bool = False,
    is_encrypted: bool = False,
    overwrite: bool = False,
    user_metadata: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The row of a folder that is complete. The same seq again: the row that it made first."""
    replaced: list[Checkpoint] = []
    with transaction.atomic():
        if (first := find_saved(run, seq)) is not None:
            return first
        if previous is not None:
            hold_previous(previous)
        if overwrite:
            same = Checkpoint.objects.alive().filter(run=run, kind=kind, name=name)
            replaced = _replace(same, needed=previous)
        checkpoint = Checkpoint.objects.create(
            project_id=run.project_id,
            run=run,
            base_model_id=run.base_model_id,
            name=name,
            kind=kind,
            step=step,
            seq=seq,
            path=path,
            digest=saved.digest,
            size_bytes=saved.size_bytes,
            rank=run.rank,
            type=saved.type,
            previous=previous,
            ratio=saved.ratio,
            export_milliseconds=export_milliseconds,
            has_optimizer=saved.has_optimizer,
            probe={"tokens": list(saved.probe.tokens), "logprobs": list(saved.probe.logprobs)},
            user_metadata=dict(user_metadata or {}),
            is_ephemeral=is_ephemeral,
            is_inflight=is_inflight,
            is_encrypted=is_encrypted,
            expires_at=now() + timedelta(seconds=ttl_seconds) if ttl_seconds else None,
        )
        announce(checkpoint)
    for old in replaced:
        remove_folder(old)
    return checkpoint


def _replace(same: CheckpointQuerySet, *, needed: Checkpoint | None) -> list[Checkpoint]:
    """Their name is free; returns those whose folders are to go.

    One that is served or sampled from now, or that a delta builds on, lives on under another name,
    until nothing needs it.
    """
    lock(same)
    unused = [each for each in without_users(same) if each != needed]
    Checkpoint.objects.filter(pk__in=[each.pk for each in unused]).update(deleted_at=now())
    for used in same:
        name = f"{used.name[:180]}~{used.seq}"
        Checkpoint.objects.filter(pk=used.pk).update(name=name, expires_at=now())
    return unused


def find_loadable(actor: Actor, path: str) -> Checkpoint:
    """By its path, to train on or to sample from."""
    checkpoint = find_by_tinker_path(actor, path)
    check_loadable(checkpoint)
    return checkpoint


def check_loadable(checkpoint: Checkpoint) -> None:
    if checkpoint.is_external:
        raise UserError(
            f"The checkpoint {checkpoint.name} was exported to be downloaded: it cannot be trained,"
            " sampled or served here. Take one that was saved with save_state or"
            " save_weights_for_sampler.",
            field="path",
        )


def find_by_tinker_path(actor: Actor, path: str) -> Checkpoint:
    """`tinker://<model id>/<kind>/<name>` of a run that the actor may see, or a public one."""
    parts = path.removeprefix("tinker://").split("/")
    is_path = path.startswith("tinker://") and "\0" not in path
    if not is_path or len(parts) != 3 or parts[1] not in PATH_KINDS:
        raise UserError(
            f"{path[:300]!r} is no checkpoint's path: it reads tinker://<run>/<kind>/<name>, and"
            f" the kind is one of {', '.join(PATH_KINDS)}.",
            field="path",
        )
    model_id, kind, name = parts
    seen = Q(project__in=_projects_of(actor)) | Q(is_public=True)
    found = Checkpoint.objects.alive().filter(
        seen, _run_is(model_id), kind=PATH_KINDS[kind], name=name
    )
    checkpoint = found.select_related("run", "base_model").first()
    if checkpoint is None:
        raise NotFound(f"There is no checkpoint {path}: it may have expired or been deleted.")
    return checkpoint


def _projects_of(actor: Actor) -> list[str]:
    if actor.is_key:
        return [actor.project.pk]
    return list(actor.user.projects.values_list("pk", flat=True))


def _run_is(model_id: str) -> Q:
    session_id, separator, number = model_id.rpartition(":train:")
    if not separator:
        return Q(run=model_id, run__session=None)
    if not number.isdecimal() or len(number) > 18:
        return Q(pk=None)
    return Q(run__session=session_id, run__model_seq_id=int(number))


def keep_checkpoint(*, actor: Actor, checkpoint: Checkpoint) -> None:
    """It stays until somebody deletes it."""
    _change(actor, checkpoint, "checkpoint_kept", expires_at=None, is_ephemeral=False)


def set_lifetime(*, actor: Actor, checkpoint: Checkpoint, ttl_seconds: int | None) -> None:
    """From now on; None: for ever."""
    expires_at = now() + timedelta(seconds=ttl_seconds) if ttl_seconds else None
    _change(actor, checkpoint, "checkpoint_ttl_set", expires_at=expires_at)


def set_pinned(*, actor: Actor, checkpoint: Checkpoint, is_pinned: bool) -> None:
    """No rule deletes one that is pinned, and its time does not run out."""
    if is_pinned:
        kept: dict[str, Any] = {"is_pinned": True, "expires_at": None, "is_ephemeral": False}
        _change(actor, checkpoint, "checkpoint_pinned", **kept)
    else:
        _change(actor, checkpoint, "checkpoint_unpinned", is_pinned=False)


def set_public(*, actor: Actor, checkpoint: Checkpoint, is_public: bool) -> None:
    """A public one may be sampled and branched from in every project."""
    event = "checkpoint_published" if is_public else "checkpoint_unpublished"
    _change(actor, checkpoint, event, is_public=is_public)


@transaction.atomic
def _change(actor: Actor, checkpoint: Checkpoint, event: str, **columns: Any) -> None:
    live = Checkpoint.objects.visible_to(actor).alive().filter(pk=checkpoint.pk)
    if live.update(**columns) != 1:
        raise NotFound(f"The checkpoint {checkpoint.name} was deleted.")
    checkpoint.refresh_from_db()
    announce(checkpoint)
    expires_at = checkpoint.expires_at
    until = {"expires_at": expires_at.isoformat()} if expires_at else {}
    _record(actor, checkpoint, event, **until)


def _record(actor: Actor, checkpoint: Checkpoint, event: str, **details: str) -> None:
    named = {"checkpoint": checkpoint.pk, "tinker_path": checkpoint.tinker_path}
    record_audit(project=checkpoint.project_id, user=actor.user, event=event, **named, **details)


def delete_checkpoint(*, actor: Actor, checkpoint: Checkpoint) -> None:
    """Its folder goes; the row stays for lineage. Refused while something needs the weights."""
    mine = Checkpoint.objects.visible_to(actor).alive().filter(pk=checkpoint.pk)
    if not mine.exists():
        raise NotFound("There is no such checkpoint.")
    with transaction.atomic():
        lock(mine)
        check_no_deltas(checkpoint)
        check_no_aliases(checkpoint)
        if without_users(mine).update(deleted_at=now()) != 1:
            raise UserError(
                f"{checkpoint.name} is in use by a deployment, a sampling client, an evaluation or"
                " a run that is about to begin with it: stop that first."
            )
        _record(actor, checkpoint, "checkpoint_deleted")
        announce(checkpoint)
    remove_folder(checkpoint)


def check_no_aliases(checkpoint: Checkpoint) -> None:
    names = list(checkpoint.aliases.values_list("name", flat=True))
    if names:
        raise UserError(
            f"{checkpoint.name} cannot be deleted: the alias {' and '.join(names)} names it. Move"
            " that to another checkpoint first."
        )


def without_users(checkpoints: CheckpointQuerySet) -> CheckpointQuerySet:
    """Those that nothing needs now, and that no open sampling client could ask for."""
    asked = checkpoints.filter(
        sampling_sessions__isnull=False, sampling_sessions__session__finished_at=None
    )
    return without_work(checkpoints).exclude(pk__in=asked)


def without_work(checkpoints: CheckpointQuerySet) -> CheckpointQuerySet:
    """Not served nor about to be, not being sampled from, no alias names them, no live run has yet
    to begin with them, and no delta builds on them.

    One that has begun has made them its own: its autosave holds what it loaded.
    """
    awaited = checkpoints.filter(
        branches__status__in=(*LIVE, "paused"), branches__autosave_seq__lt=0
    )
    return (
        without_deltas(checkpoints)
        .exclude(deployments__status__in=("loading", "ready", "failed"))
        .exclude(changes__status="loading")
        .exclude(sampling_calls__status__in=LIVE)
        .exclude(evaluations__status__in=LIVE)
        .exclude(aliases__isnull=False)
        .exclude(pk__in=awaited)
    )


def expire_checkpoints() -> int:
    """Delete what has outlived its time, but for what is in use or a run's best. What a delta built
    on goes after it, at once."""
    num_gone = 0
    while num_now := sum(_delete(each) for each in _list_expired()):
        num_gone += num_now
    return num_gone


def _list_expired() -> list[Checkpoint]:
    expired = Checkpoint.objects.alive().filter(Q(expires_at__lt=now()) | _is_left_behind())
    expired = expired.exclude(_is_asked_next())
    return [each for each in without_users(expired) if each.is_ephemeral or not is_best(each)]


def _is_asked_next() -> Q:
    """A recipe samples from the newest weights of its run: one that was paused, or lost its driver,
    does so when it comes back."""
    of_recipe = Q(run__ended_at=None) & ~Q(run__recipe="")
    return Q(is_ephemeral=True, step=F("run__step")) & of_recipe


def _is_left_behind() -> Q:
    """Made for sampling clients that have closed, or that follow newer weights by now."""
    is_old = Q(created_at__lt=now() - OPENING)
    unfollowed = Checkpoint.objects.filter(is_old, is_inflight=True, sampling_sessions=None)
    is_closed = Q(run__session__finished_at__isnull=False)
    return Q(is_ephemeral=True) & (is_closed | Q(pk__in=unfollowed.values("pk")))


def is_best(checkpoint: Checkpoint) -> bool:
    """Its step has the lowest held-out loss of its run."""
    losses = Metric.objects.filter(run=checkpoint.run_id, key="held_out_loss")
    best = losses.order_by("value").values_list("step", flat=True).first()
    return best == checkpoint.step


def _delete(checkpoint: Checkpoint) -> bool:
    mine = Checkpoint.objects.alive().filter(pk=checkpoint.pk)
    return discard(without_users(mine), checkpoint)


def discard(guarded: CheckpointQuerySet, checkpoint: Checkpoint) -> bool:
    """The row first: a folder that is left over is waste, a row without one is a lie.

    False: somebody has begun to use it at the last moment, and it stays.
    """
    with transaction.atomic():
        lock(Checkpoint.objects.filter(pk=checkpoint.pk))
        if guarded.update(deleted_at=now()) != 1:
            return False
    remove_folder(checkpoint)
    announce(checkpoint)
    return True


def remove_folder(checkpoint: Checkpoint) -> None:
    """What was exported of it goes too."""
    shutil.rmtree(find_folder(checkpoint), ignore_errors=True)
    shutil.rmtree(exports_folder(checkpoint), ignore_errors=True)


def exports_folder(checkpoint: Checkpoint) -> Path:
    return Path(settings.HONE_HOME) / "exports" / checkpoint.pk


def find_folder(checkpoint: Checkpoint) -> Path:
    return Path(settings.HONE_HOME) / checkpoint.path


def announce(checkpoint: Checkpoint) -> None:
    publish(run_group(checkpoint.run_id), "checkpoints")
    publish(project_group(checkpoint.project_id), "checkpoints")
