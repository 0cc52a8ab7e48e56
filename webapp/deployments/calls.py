"""Sampling calls as a queue: every change of ownership is one guarded UPDATE."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet, Subquery
from django.utils.timezone import now
from redis import RedisError

from webapp.accounts.models import Actor, Project
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable
from webapp.core.errors import NotFound, UserError
from webapp.core.events import connection, project_group, publish, wake
from webapp.deployments.models import Deployment, HotLoad, SamplingCall, SamplingSession
from webapp.deployments.turns import WATCHED, choose_calls, name_owner
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session

# Tells samplers that calls or deployments wait, or which call was cancelled. What is lost is found
# by their next look.
KICK = "hone.sampling"
CLONE = 1_000_000_000  # requests of one copy of a sampling client
CLAIM = timedelta(seconds=30)  # a sampler renews every few seconds; a dead one's calls come back

Purpose = SamplingCall.Purpose
Status = SamplingCall.Status

EVERY = Q()
LIVE = (Status.QUEUED, Status.RUNNING)  # each has an index of its own; both together have none


def submit_call(  # noqa: PLR0913 - the row's columns, by name
    *,
    project: Project,
    purpose: str,
    base_model: BaseModel,
    payload: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    deployment: Deployment | None = None,
    is_streamed: bool = False,
    sampling_session: SamplingSession | None = None,
    seq_id: int | None = None,
    about: Mapping[str, Any] | None = None,
    run: Run | None = None,
    replay_key: str | None = None,
) -> SamplingCall:
    """Queue one call; a retry with the same session and seq_id returns the first one, and so does
    one with the same replay_key."""
    call = SamplingCall(
        project=project,
        purpose=purpose,
        base_model=base_model,
        checkpoint=checkpoint,
        deployment=deployment,
        is_streamed=is_streamed,
        sampling_session=sampling_session,
        seq_id=seq_id,
        payload=dict(payload),
        digest=digest_payload(payload),
        about=dict(about or {}),
        run=run,
        replay_key=replay_key,
    )
    call.owner = name_owner(call)
    try:
        with transaction.atomic():
            call.save(force_insert=True)
    except IntegrityError:
        if replay_key is not None:
            return SamplingCall.objects.get(replay_key=replay_key)
        if sampling_session is None or seq_id is None:
            raise
        return _find_first(sampling_session, seq_id, call.digest)
    kick_samplers()
    return call


def submit_calls(calls: Sequence[SamplingCall]) -> None:
    """Many at once, as an evaluation does; the caller's transaction makes it happen once."""
    for call in calls:
        call.owner = name_owner(call)
    SamplingCall.objects.bulk_create(calls, batch_size=200)
    kick_samplers()


def digest_payload(payload: Mapping[str, Any]) -> str:
    return sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def claim_calls(*, worker: str, limit: int, among: Q = EVERY) -> list[SamplingCall]:
    """Take up to `limit` waiting calls, those whose turn it is."""
    wanted = choose_calls(limit, among)
    if not wanted:
        return []
    until = now() + CLAIM
    waiting = SamplingCall.objects.filter(pk__in=wanted, status=Status.QUEUED)
    waiting.update(status=Status.RUNNING, worker=worker, claim_until=until, started_at=now())
    # Two samplers may want the same ones: ours are those that carry our name and this very time.
    ours = SamplingCall.objects.filter(
        pk__in=wanted, status=Status.RUNNING, worker=worker, claim_until=until
    )
    whole = ours.select_related("base_model", "checkpoint", "run", "project")
    return list(whole.prefetch_related("base_model__names").order_by("id"))


def renew_claims(*, worker: str, pks: Sequence[int]) -> set[int]:
    """Keep what is being worked on. Returns what is still ours: the rest was cancelled."""
    held = SamplingCall.objects.filter(pk__in=pks, status=Status.RUNNING, worker=worker)
    held.update(claim_until=now() + CLAIM)
    return set(held.values_list("pk", flat=True))


def requeue_expired() -> int:
    """A sampler that died cannot say so: its calls wait again."""
    expired = SamplingCall.objects.filter(status=Status.RUNNING, claim_until__lt=now())
    return expired.update(status=Status.QUEUED, worker="", claim_until=None)


def requeue_calls(*, worker: str) -> int:
    """What a sampler of this name held before it was started again, or cannot finish now."""
    held = SamplingCall.objects.filter(status=Status.RUNNING, worker=worker)
    return held.update(status=Status.QUEUED, worker="", claim_until=None)


def requeue_call(call: SamplingCall, *, worker: str) -> bool:
    """Its server was lost under it; another start of it, or another sampler, answers."""
    waits = {"status": Status.QUEUED, "worker": "", "claim_until": None}
    return _held_by(worker, call).update(**waits) == 1


def note_checkpoint(call: SamplingCall, checkpoint: Checkpoint | None) -> None:
    """A call that named a deployment is answered by what that serves by now."""
    if call.checkpoint != checkpoint:
        call.checkpoint = checkpoint
        SamplingCall.objects.filter(pk=call.pk).update(checkpoint=checkpoint)


def finish_call(
    call: SamplingCall,
    *,
    worker: str,
    result: bytes,
    content_type: str,
    hot_load: HotLoad | None = None,
    num_tokens: Mapping[str, int] | None = None,
    first_token_at: datetime | None = None,
) -> bool:
    """Store the result. `num_tokens`: of the prompt, cached and sampled, by their columns' names.

    False: the claim was lost or the call cancelled; the result is dropped."""
    return _end(
        _held_by(worker, call),
        call,
        status=Status.DONE,
        result=result,
        content_type=content_type,
        hot_load=hot_load,
        first_token_at=first_token_at,
        **num_tokens or {},
    )


def fail_call(call: SamplingCall, *, worker: str, error: str, category: str) -> bool:
    """`category`: user or server. False: the claim was lost, and nothing is written."""
    return _end(
        _held_by(worker, call), call, status=Status.FAILED, error=error, error_category=category
    )


def cancel_call(call: SamplingCall) -> bool:
    """False: it had ended already."""
    live = SamplingCall.objects.filter(pk=call.pk, status__in=LIVE)
    cancelled = _end(live, call, status=Status.CANCELLED, error="It was cancelled.")
    if cancelled:
        transaction.on_commit(partial(_kick, call.request_id))
    return cancelled


def cancel_calls(*, about: Mapping[str, Any], run: Run | None = None) -> int:
    """Every live call of a run, or of an evaluation (`about={"evaluation": id}`)."""
    conditions: dict[str, Any] = {f"about__{key}": value for key, value in about.items()}
    if run is not None:
        conditions["run"] = run
    live = [SamplingCall.objects.filter(status=each, **conditions) for each in LIVE]
    return sum(cancel_call(call) for calls in live for call in calls)


def open_sampling_session(
    *,
    session: Session,
    seq_id: int,
    base_model: BaseModel | None = None,
    checkpoint: Checkpoint | None = None,
    actor: Actor | None = None,
) -> SamplingSession:
    """What a sampling client samples from. A retry with the same seq_id returns the first one.

    Without an actor it is an ephemeral save that opens it, of the run's own session.
    """
    if checkpoint is not None:
        _check_may_sample(checkpoint, actor)
        base_model = checkpoint.base_model
    if base_model is None:
        raise UserError("Name a base model or a checkpoint to sample from.", field="base_model")
    opened, is_new = SamplingSession.objects.get_or_create(
        session=session,
        seq_id=seq_id,
        defaults={
            "project": session.project,
            "base_model": base_model,
            "checkpoint": checkpoint,
        },
    )
    wanted = (base_model.pk, checkpoint.pk if checkpoint else None)
    if not is_new and (opened.base_model_id, opened.checkpoint_id) != wanted:
        raise UserError(f"sampling_session_seq_id {seq_id} was already used for other weights.")
    return opened


def follow_inflight(checkpoint: Checkpoint) -> int:
    """Sampling clients of the run's earlier inflight saves ask for these weights from now on."""
    followers = SamplingSession.objects.filter(
        checkpoint__run=checkpoint.run_id, checkpoint__is_inflight=True
    )
    return followers.update(checkpoint=checkpoint)


def join_sampling_session(sampler: SamplingSession) -> int:
    """The number of one more copy of its client, which counts its requests from there."""
    same = SamplingSession.objects.filter(pk=sampler.pk)
    with transaction.atomic():
        same.update(num_clones=F("num_clones") + 1)
        return same.values_list("num_clones", flat=True).get()


def kick_samplers() -> None:
    transaction.on_commit(_kick)


def _kick(cancelled: str = "") -> None:
    # A sampler that did not hear it looks by itself a moment later.
    with suppress(RedisError):
        connection().publish(KICK, cancelled)


def _find_first(session: SamplingSession, seq_id: int, digest: str) -> SamplingCall:
    first = SamplingCall.objects.get(sampling_session=session, seq_id=seq_id)
    if first.digest != digest:
        raise UserError(f"seq_id {seq_id} was already used for another request.") from None
    return first


def _check_may_sample(checkpoint: Checkpoint, actor: Actor | None) -> None:
    visible = actor is None or (
        checkpoint.is_public
        or Checkpoint.objects.visible_to(actor).filter(pk=checkpoint.pk).exists()
    )
    if not visible:
        raise NotFound("There is no such checkpoint.")
    if checkpoint.deleted_at is not None:
        raise UserError(f"The checkpoint {checkpoint.name} was deleted: sample from another one.")
    check_loadable(checkpoint)


def _held_by(worker: str, call: SamplingCall) -> QuerySet[SamplingCall]:
    return SamplingCall.objects.filter(pk=call.pk, status=Status.RUNNING, worker=worker)


def _end(guarded: QuerySet[SamplingCall], call: SamplingCall, **columns: Any) -> bool:
    sampler_id = call.sampling_session_id
    with transaction.atomic():
        if sampler_id is not None:
            columns["end_number"] = take_number(sampler_id)
        ended = guarded.update(finished_at=now(), claim_until=None, **columns) == 1
        if ended:
            wake(call.request_id)
            if sampler_id is not None:
                wake(sampler_id)
            if call.purpose in WATCHED:
                publish(project_group(call.project_id), call.request_id)
    return ended


def take_number(sampler_id: str) -> Subquery:
    """The next number of a sampling session, to be stored before this transaction ends."""
    same = SamplingSession.objects.filter(pk=sampler_id)
    same.update(num_ended=F("num_ended") + 1)
    return Subquery(same.values("num_ended"))
