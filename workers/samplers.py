"""Sampler behind the queue: what recipes, judges and generators ask in production.

A call is found again by whom it was asked of and what it is about: a driver that died and begins
again gets the answers of the first time, and asks nothing twice.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from training.types import SampledSequence, SampleOutput, SampleRequest
from webapp.accounts.models import Project
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.calls import submit_call
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run
from webapp.tinker.sample_payloads import write_payload
from workers.remote import Ended, RemoteFuture, Waiter

Status = SamplingCall.Status
LIVE = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSampler:
    """Samples from a checkpoint, or from the base model as it is, through the serving path.

    Without a run `about` names whose call it is, such as {"dataset_version": id, "row": 3}.
    """

    project: Project
    run: Run | None
    base_model: BaseModel
    checkpoint: Checkpoint | None = None
    purpose: str = SamplingCall.Purpose.ROLLOUT
    waiter: Waiter
    keep_going: Callable[[], None]

    def sample(
        self, request: SampleRequest, *, about: Mapping[str, Any]
    ) -> RemoteFuture[SampleOutput]:
        """The first request about something counts: one that is repeated is answered as that.

        Thousands may be sent before the first is waited for: whoever asks stays the driver.
        """
        self.keep_going()
        key = self._make_key(about)
        call = SamplingCall.objects.filter(replay_key=key).first()
        was_recorded = call is not None
        first = call or self._submit(request, about, key)
        return RemoteFuture(
            request_id=first.request_id,
            look=lambda: _look(first),
            read=_read_output,
            waiter=self.waiter,
            keep_going=self.keep_going,
            was_recorded=was_recorded,
        )

    def _submit(self, request: SampleRequest, about: Mapping[str, Any], key: str) -> SamplingCall:
        return submit_call(
            project=self.project,
            purpose=self.purpose,
            base_model=self.base_model,
            checkpoint=self.checkpoint,
            payload=write_payload(request),
            about=about,
            run=self.run,
            replay_key=key,
        )

    def _make_key(self, about: Mapping[str, Any]) -> str:
        owner = self.project.pk if self.run is None else self.run.pk
        weights = None if self.checkpoint is None else self.checkpoint.pk
        parts = [owner, self.purpose, self.base_model.pk, weights, dict(about)]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _look(call: SamplingCall) -> Ended | None:
    """The row is read again until it has ended; after that it does not change."""
    if call.status in LIVE:
        call.refresh_from_db(fields=["status", "result", "error", "error_category"])
    if call.status in LIVE:
        return None
    return Ended(
        result=bytes(call.result or b""), error=_say_why(call), category=call.error_category
    )


def _say_why(call: SamplingCall) -> str:
    """Empty where it was answered."""
    if call.status == Status.DONE:
        return ""
    if call.status == Status.CANCELLED:
        return f"The sampling call {call.pk} was cancelled before it was answered."
    reason = call.error or "internal error"
    return f"The sampling call {call.pk} could not be answered: {reason}"


def _read_output(body: bytes) -> SampleOutput:
    answer = json.loads(body)
    return SampleOutput(
        sequences=[
            SampledSequence(
                tokens=sequence["tokens"],
                logprobs=sequence["logprobs"],
                stop_reason=sequence["stop_reason"],
                raw_logprobs=sequence.get("raw_logprobs"),
                drawn_logprobs=sequence.get("drawn_logprobs"),
            )
            for sequence in answer["sequences"]
        ],
        prompt_logprobs=answer.get("prompt_logprobs"),
    )
