"""Sampling from recipes: over the serving path, and the same answers when a driver begins again."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.webapp.deployments.conftest import make_checkpoint
from tests.workers.cast import make_client_run
from training.errors import InvalidInput
from training.types import SampleRequest, SamplingParams
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from webapp.runs.driving import Cancelled
from webapp.runs.models import Run
from workers.remote import OperationFailed
from workers.samplers import RemoteSampler

pytestmark = pytest.mark.django_db

REQUEST = SampleRequest(
    prompt=[1, 2, 3], params=SamplingParams(max_tokens=2, seed=4, temperature=0.5), num_samples=2
)
SEQUENCE = {"tokens": [7, 8], "logprobs": [-0.5, -0.1], "stop_reason": "length"}


@dataclass(slots=True)
class AnswerWaiter:
    """While somebody waits, a server does what it does with the call that is next."""

    act: Callable[[SamplingCall], object]

    def wait(self, request_id: str) -> None:
        for call in calls.claim_calls(worker="s1", limit=1):
            self.act(call)


def answer(call: SamplingCall) -> None:
    body = json.dumps({"sequences": [SEQUENCE], "prompt_logprobs": [None, -1.0, -2.0]}).encode()
    calls.finish_call(call, worker="s1", result=body, content_type="application/json")


def go_on() -> None:
    """Nobody has pressed anything."""


def test_who_sends_many_calls_stays_the_driver_and_hears_stop(run: Run) -> None:
    heard: list[int] = []
    sampler = open_sampler(run, keep_going=lambda: heard.append(SamplingCall.objects.count()))
    for number in range(3):
        sampler.sample(REQUEST, about={"step": number})
    assert heard == [0, 1, 2]


@pytest.fixture
def run() -> Run:
    return make_client_run()


def open_sampler(
    run: Run,
    act: Callable[[SamplingCall], object] = answer,
    checkpoint: Checkpoint | None = None,
    keep_going: Callable[[], None] = go_on,
) -> RemoteSampler:
    return RemoteSampler(
        project=run.project,
        run=run,
        base_model=run.base_model,
        checkpoint=checkpoint,
        waiter=AnswerWaiter(act),
        keep_going=keep_going,
    )


def test_a_sampler_asks_the_serving_path(run: Run) -> None:
    checkpoint = make_checkpoint(run)
    sampler = open_sampler(run, checkpoint=checkpoint)
    output = sampler.sample(REQUEST, about={"step": 1}).result()
    assert output.sequences[0].tokens == [7, 8]
    assert output.prompt_logprobs == [None, -1.0, -2.0]
    call = SamplingCall.objects.get()
    assert (call.checkpoint, call.run, call.purpose) == (checkpoint, run, "rollout")
    assert (call.payload["prompt"], call.payload["num_samples"]) == ([1, 2, 3], 2)
    assert call.payload["params"]["temperature"] == 0.5
    assert call.about == {"step": 1}


def test_a_driver_that_begins_again_gets_the_answers_of_the_first_time(run: Run) -> None:
    first = open_sampler(run).sample(REQUEST, about={"step": 1, "group": 0})
    assert not first.was_recorded
    before = first.result()
    again = open_sampler(run).sample(REQUEST, about={"group": 0, "step": 1})
    assert again.was_recorded
    assert again.result() == before
    other = open_sampler(run).sample(REQUEST, about={"step": 1, "group": 1})
    assert not other.was_recorded
    assert SamplingCall.objects.count() == 2


def test_two_weights_are_asked_about_the_same_apart(run: Run) -> None:
    open_sampler(run).sample(REQUEST, about={"step": 1})
    asked = open_sampler(run, checkpoint=make_checkpoint(run)).sample(REQUEST, about={"step": 1})
    assert not asked.was_recorded
    assert SamplingCall.objects.count() == 2


def test_two_drivers_at_once_share_one_call(run: Run) -> None:
    sampler = open_sampler(run)
    first = sampler.sample(REQUEST, about={"step": 1})
    # Both looked before either wrote.
    late = sampler._submit(REQUEST, {"step": 1}, sampler._make_key({"step": 1}))
    assert late.request_id == first.request_id
    assert SamplingCall.objects.count() == 1


def test_a_cancelled_call_says_so(run: Run) -> None:
    waits = open_sampler(run, act=calls.cancel_call).sample(REQUEST, about={"step": 1})
    with pytest.raises(OperationFailed, match="was cancelled before it was answered"):
        waits.result()


@pytest.mark.parametrize(
    ("category", "expected"), [("user", InvalidInput), ("server", OperationFailed)]
)
def test_a_failed_call_says_whose_fault_it_was(
    run: Run, category: str, expected: type[Exception]
) -> None:
    def fail(call: SamplingCall) -> None:
        calls.fail_call(call, worker="s1", error="The prompt is too long.", category=category)

    waits = open_sampler(run, act=fail).sample(REQUEST, about={"step": 1})
    with pytest.raises(expected, match=r"could not be answered: The prompt is too long\."):
        waits.result()


def test_a_stop_is_heard_while_an_answer_is_waited_for(run: Run) -> None:
    wishes: list[str] = []

    def hear() -> None:
        if wishes:
            raise Cancelled

    waits = open_sampler(run, keep_going=hear).sample(REQUEST, about={"step": 1})
    wishes.append("stop")
    with pytest.raises(Cancelled):
        waits.result()


def test_a_call_of_no_run_is_its_projects(run: Run) -> None:
    sampler = RemoteSampler(
        project=run.project,
        run=None,
        base_model=run.base_model,
        purpose=SamplingCall.Purpose.JUDGE,
        waiter=AnswerWaiter(answer),
        keep_going=go_on,
    )
    about = {"evaluation": "e1", "index": 3}
    assert sampler.sample(REQUEST, about=about).result().sequences[0].stop_reason == "length"
    call = SamplingCall.objects.get()
    assert (call.run, call.owner, call.purpose) == (None, "e1", "judge")
