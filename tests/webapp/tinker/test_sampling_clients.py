"""Sampling clients: copies with numbers of their own, full queues, samples that nobody wants."""

from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.tinker.conftest import Program
from webapp.accounts.credentials import forget_actors
from webapp.accounts.models import Membership, Role
from webapp.deployments import turns
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs.models import Session


@pytest.fixture
def sampler(program: Program, base_model: BaseModel) -> str:
    fields = {"session_id": program.open_session(), "sampling_session_seq_id": 0}
    answer = program.post("create_sampling_session", **fields, base_model=base_model.name)
    return str(answer["sampling_session_id"])


def sample(program: Program, sampler: str, seq_id: int) -> Any:
    return program.post(
        "asample",
        sampling_session_id=sampler,
        seq_id=seq_id,
        num_samples=2,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        sampling_params={"max_tokens": 2},
    )


def test_each_copy_of_a_client_gets_a_number_of_its_own(program: Program, sampler: str) -> None:
    numbers = [
        program.post("join_sampling_session", sampling_session_id=sampler)["client_counter"]
        for _ in range(3)
    ]
    assert numbers == [1, 2, 3]


def test_copies_are_of_ones_own_clients(program: Program, stranger: Program, sampler: str) -> None:
    stranger.post("join_sampling_session", sampling_session_id=sampler)
    assert stranger.status == 404
    program.post("join_sampling_session", sampling_session_id=5)
    assert program.status == 400
    Membership.objects.update(role=Role.VIEWER)
    forget_actors()
    program.post("join_sampling_session", sampling_session_id=sampler)
    assert program.status == 403


def test_the_same_numbers_of_two_copies_are_two_requests(program: Program, sampler: str) -> None:
    first, second = sample(program, sampler, 7), sample(program, sampler, 1_000_000_007)
    assert first["request_id"] != second["request_id"]
    assert second["sample_sequence_ids"] == [f"{sampler}/1000000007/{n}" for n in range(2)]
    assert sample(program, sampler, 7) == first


def test_a_full_queue_is_a_429_which_the_sdk_understands(
    program: Program, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST_WAITING", 2)
    for seq_id in range(2):
        sample(program, sampler, seq_id)
    answer = sample(program, sampler, 2)
    assert (program.status, "wait already" in answer["detail"]) == (429, True)
    SamplingCall.objects.filter(seq_id=0).update(status=SamplingCall.Status.DONE)
    sample(program, sampler, 2)
    assert program.status == 200


def test_samples_that_nobody_wants_are_cancelled(
    program: Program, stranger: Program, sampler: str
) -> None:
    request_ids = [sample(program, sampler, seq_id)["request_id"] for seq_id in range(3)]
    stranger.post("cancel_future", request_id=request_ids[0])
    assert set(SamplingCall.objects.values_list("status", flat=True)) == {"queued"}
    for request_id in (*request_ids[:2], request_ids[0], "call-x", "op-1", "call-" + "9" * 30):
        program.post("cancel_future", request_id=request_id)
        assert program.status == 200, request_id
    statuses = SamplingCall.objects.order_by("seq_id").values_list("status", flat=True)
    assert list(statuses) == ["cancelled", "cancelled", "queued"]
    program.post("cancel_future", request_id=None)
    assert program.status == 400


def test_a_client_of_a_session_that_ended_gets_no_more_samples(
    program: Program, sampler: str
) -> None:
    Session.objects.update(finished_at=now())
    answer = sample(program, sampler, 0)
    assert (program.status, "has ended" in answer["detail"]) == (400, True)
