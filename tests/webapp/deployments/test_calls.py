"""The queue of sampling calls: submitted once, held by one sampler, ended once."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session

PAYLOAD = {"prompt": [1, 2], "num_samples": 1, "params": {"max_tokens": 4}}
Status = SamplingCall.Status


@pytest.fixture
def submit(alice: Actor, base_model: BaseModel) -> Any:
    def submit(**columns: Any) -> SamplingCall:
        defaults: dict[str, Any] = {
            "project": alice.project,
            "purpose": SamplingCall.Purpose.TINKER,
            "base_model": base_model,
            "payload": PAYLOAD,
        }
        return calls.submit_call(**defaults | columns)

    return submit


def test_a_retry_with_the_same_seq_id_gets_the_first_call(
    submit: Any, session: Session, base_model: BaseModel
) -> None:
    opened = calls.open_sampling_session(session=session, seq_id=0, base_model=base_model)
    first = submit(sampling_session=opened, seq_id=3)
    assert submit(sampling_session=opened, seq_id=3) == first
    assert submit(sampling_session=opened, seq_id=4) != first


def test_a_seq_id_that_was_used_for_another_request_is_refused(
    submit: Any, session: Session, base_model: BaseModel
) -> None:
    opened = calls.open_sampling_session(session=session, seq_id=0, base_model=base_model)
    submit(sampling_session=opened, seq_id=3)
    with pytest.raises(UserError, match="seq_id 3"):
        submit(sampling_session=opened, seq_id=3, payload=PAYLOAD | {"num_samples": 2})


def test_tools_come_to_the_model_with_their_keys_in_the_order_they_were_sent(submit: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "b", "a": "c"}}
    submit(payload={"tools": [tool], "prompt": [1], "note": None})
    (claimed,) = calls.claim_calls(worker="one", limit=1)
    assert json.dumps(claimed.payload["tools"]) == json.dumps([tool])
    assert list(claimed.payload) == ["tools", "prompt", "note"]


def test_a_claimed_call_is_not_given_to_another_sampler(submit: Any) -> None:
    first, second = submit(), submit()
    assert calls.claim_calls(worker="a", limit=1) == [first]
    assert calls.claim_calls(worker="b", limit=5) == [second]
    assert calls.claim_calls(worker="b", limit=5) == []


def test_what_a_person_waits_for_stands_before_an_evaluation(submit: Any) -> None:
    submit(purpose=SamplingCall.Purpose.EVALUATION)
    chat = submit(purpose=SamplingCall.Purpose.PLAYGROUND)
    assert calls.claim_calls(worker="a", limit=1) == [chat]


def test_the_calls_of_a_dead_sampler_wait_again(submit: Any) -> None:
    call = submit()
    calls.claim_calls(worker="dead", limit=1)
    assert calls.requeue_expired() == 0
    SamplingCall.objects.update(claim_until=now() - timedelta(seconds=1))
    assert calls.requeue_expired() == 1
    assert calls.claim_calls(worker="alive", limit=1) == [call]


def test_a_sampler_that_lost_its_claim_cannot_store_a_result(submit: Any) -> None:
    submit()
    (call,) = calls.claim_calls(worker="dead", limit=1)
    SamplingCall.objects.update(claim_until=now() - timedelta(seconds=1))
    calls.requeue_expired()
    calls.claim_calls(worker="alive", limit=1)
    stored = calls.finish_call(call, worker="dead", result=b"late", content_type="text/plain")
    assert not stored
    call.refresh_from_db()
    assert (call.status, call.result) == (Status.RUNNING, None)


def test_a_renewed_claim_does_not_expire(submit: Any) -> None:
    submit()
    (call,) = calls.claim_calls(worker="a", limit=1)
    SamplingCall.objects.update(claim_until=now() - timedelta(seconds=1))
    assert calls.renew_claims(worker="a", pks=[call.pk]) == {call.pk}
    assert calls.requeue_expired() == 0


def test_a_cancelled_call_keeps_no_result_and_is_no_longer_its_samplers(submit: Any) -> None:
    submit()
    (call,) = calls.claim_calls(worker="a", limit=1)
    assert calls.cancel_call(call)
    assert calls.renew_claims(worker="a", pks=[call.pk]) == set()
    assert not calls.finish_call(call, worker="a", result=b"x", content_type="text/plain")
    assert not calls.cancel_call(call)
    call.refresh_from_db()
    assert call.status == Status.CANCELLED


def test_cancelling_an_evaluations_calls_leaves_those_of_others(submit: Any) -> None:
    mine = submit(about={"evaluation": "eval-1", "index": 0})
    other = submit(about={"evaluation": "eval-2", "index": 0})
    assert calls.cancel_calls(about={"evaluation": "eval-1"}) == 1
    mine.refresh_from_db()
    other.refresh_from_db()
    assert (mine.status, other.status) == (Status.CANCELLED, Status.QUEUED)


def test_a_result_wakes_whoever_waits_for_it(submit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(calls, "wake", woken.append)
    submit()
    (call,) = calls.claim_calls(worker="a", limit=1)
    assert calls.finish_call(call, worker="a", result=b"r", content_type="text/plain")
    call.refresh_from_db()
    assert (call.status, bytes(call.result or b"")) == (Status.DONE, b"r")
    assert woken == [call.request_id]


def test_an_ended_call_of_a_sampling_session_takes_its_next_number(
    submit: Any, session: Session, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(calls, "wake", woken.append)
    opened = calls.open_sampling_session(session=session, seq_id=0, base_model=base_model)
    first, second = (submit(sampling_session=opened, seq_id=seq) for seq in range(2))
    calls.claim_calls(worker="a", limit=2)
    assert calls.fail_call(second, worker="a", error="no", category="user")
    assert calls.finish_call(first, worker="a", result=b"r", content_type="x")
    first.refresh_from_db()
    second.refresh_from_db()
    opened.refresh_from_db()
    assert (second.end_number, first.end_number, opened.num_ended) == (1, 2, 2)
    assert woken == [second.request_id, opened.pk, first.request_id, opened.pk]


def test_a_sampling_session_is_opened_once(
    session: Session, base_model: BaseModel, checkpoint: Checkpoint, alice: Actor
) -> None:
    opened = calls.open_sampling_session(
        actor=alice, session=session, seq_id=1, checkpoint=checkpoint
    )
    again = calls.open_sampling_session(
        actor=alice, session=session, seq_id=1, checkpoint=checkpoint
    )
    assert (opened, opened.base_model) == (again, base_model)
    with pytest.raises(UserError, match="already used"):
        calls.open_sampling_session(actor=alice, session=session, seq_id=1, base_model=base_model)


def test_another_projects_checkpoint_does_not_exist_for_a_sampling_session(
    charlie: Actor, checkpoint: Checkpoint
) -> None:
    theirs = Session.objects.create(project=charlie.project, user=charlie.user)
    with pytest.raises(NotFound):
        calls.open_sampling_session(actor=charlie, session=theirs, seq_id=0, checkpoint=checkpoint)


def test_a_public_checkpoint_may_be_sampled_by_everybody(charlie: Actor, run: Run) -> None:
    public = make_checkpoint(run, name="public", is_public=True)
    theirs = Session.objects.create(project=charlie.project, user=charlie.user)
    opened = calls.open_sampling_session(actor=charlie, session=theirs, seq_id=0, checkpoint=public)
    assert (opened.project, opened.checkpoint) == (charlie.project, public)


def test_a_deleted_checkpoint_cannot_be_sampled(run: Run, session: Session) -> None:
    gone = make_checkpoint(run, deleted_at=now())
    with pytest.raises(UserError, match="was deleted"):
        calls.open_sampling_session(session=session, seq_id=0, checkpoint=gone)
