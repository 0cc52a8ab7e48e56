"""Yesterday's answers and closed clients go; conversations, runs and open clients stay."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.deployments.retention import forget_calls, forget_sessions
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session

LONG_AGO = now() - timedelta(days=1, seconds=1)


@pytest.fixture
def submit(alice: Actor, base_model: BaseModel) -> Any:
    def submit(purpose: str = SamplingCall.Purpose.TINKER, **columns: Any) -> SamplingCall:
        return calls.submit_call(
            project=alice.project, purpose=purpose, base_model=base_model, payload={}, **columns
        )

    return submit


def test_results_are_forgotten_after_a_day_but_conversations_stay(submit: Any) -> None:
    old, chat, fresh = submit(), submit(SamplingCall.Purpose.PLAYGROUND), submit()
    waiting = submit()
    SamplingCall.objects.exclude(pk=waiting.pk).update(finished_at=now())
    SamplingCall.objects.filter(pk__in=[old.pk, chat.pk]).update(finished_at=LONG_AGO)
    assert forget_calls() == 1
    assert set(SamplingCall.objects.all()) == {chat, fresh, waiting}


def test_what_a_recipe_sampled_stays_until_its_run_has_ended_for_a_day(
    submit: Any, run: Run
) -> None:
    purpose = SamplingCall.Purpose.ROLLOUT
    of_run, of_none = submit(purpose, run=run), submit(SamplingCall.Purpose.GENERATION)
    SamplingCall.objects.update(finished_at=LONG_AGO)
    assert forget_calls() == 1
    assert list(SamplingCall.objects.all()) == [of_run]
    assert of_none.pk != of_run.pk
    Run.objects.update(ended_at=now())
    assert forget_calls() == 0
    Run.objects.update(ended_at=LONG_AGO)
    assert forget_calls() == 1


def test_a_turn_forgets_the_oldest_and_no_more_than_it_may(submit: Any) -> None:
    many = [submit() for _ in range(5)]
    for age, call in enumerate(many):
        SamplingCall.objects.filter(pk=call.pk).update(finished_at=LONG_AGO - timedelta(hours=age))
    assert forget_calls(limit=3) == 3
    assert set(SamplingCall.objects.all()) == set(many[:2])


def test_closed_clients_go_with_their_samplers_once_nothing_asks_by_them(
    submit: Any, session: Session, base_model: BaseModel
) -> None:
    sampler = calls.open_sampling_session(session=session, seq_id=0, base_model=base_model)
    call = submit(sampling_session=sampler, seq_id=0)
    assert forget_sessions() == 0
    Session.objects.update(finished_at=LONG_AGO)
    assert forget_sessions() == 0
    call.delete()
    assert forget_sessions() == 2
    assert not SamplingSession.objects.exists()
    assert not Session.objects.exists()


def test_a_closed_client_that_left_a_run_stays_with_it(session: Session, run: Run) -> None:
    Run.objects.update(session=session, model_seq_id=0)
    Session.objects.update(finished_at=LONG_AGO)
    assert forget_sessions() == 0
    assert Run.objects.get().session == session
