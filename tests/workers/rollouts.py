"""A recipe that samples, its device and a sampling server take turns in one process."""

from dataclasses import dataclass, field
from typing import Any

import torch
from django.conf import settings

from tests.workers.cast import TINY, make_device
from training.data.tokenizer import ChatTokenizer
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from webapp.runs import queue
from workers.answers import make_answer, make_request, store_answer, store_failure
from workers.device import Device
from workers.gpu import run_turn


class ProcessKilled(BaseException):
    """As kill -9 ends a process: nothing of it runs any more."""


@dataclass(slots=True, kw_only=True)
class Server:
    """Answers calls with the weights that they name."""

    generator: Generator = field(default_factory=lambda: Generator.load(TINY))
    tokenizer: ChatTokenizer = field(default_factory=lambda: ChatTokenizer.load(TINY))

    def answer_waiting(self) -> bool:
        """All that wait, in one batch. False: none did."""
        claimed = calls.claim_calls(worker="s1", limit=500)
        requests = [(call, make_request(call, self.tokenizer)) for call in claimed]
        tickets = [self.submit(call, request) for call, request in requests]
        answers = self.run()
        for (call, request), ticket in zip(requests, tickets, strict=True):
            output = answers.get(ticket)
            if isinstance(output, SampleOutput):
                answer = make_answer(call, request, output, self.tokenizer)
                store_answer(call, answer, "s1")
        return bool(claimed)

    def submit(self, call: SamplingCall, request: SampleRequest) -> int:
        if call.checkpoint is not None and call.checkpoint.deleted_at is not None:
            store_failure(call, "The checkpoint was deleted.", "user", "s1")
            return -1
        return self.generator.submit(request, adapter=self.find_adapter(call.checkpoint))

    def find_adapter(self, checkpoint: Checkpoint | None) -> str | None:
        if checkpoint is None:
            return None
        if checkpoint.pk not in self.generator.loaded:
            self.generator.load_adapter(checkpoint.pk, settings.HONE_HOME / checkpoint.path)
        return checkpoint.pk

    def run(self) -> dict[int, SampleOutput | InvalidInput]:
        answers: dict[int, SampleOutput | InvalidInput] = {}
        while not self.generator.is_idle:
            for finished in self.generator.step():
                answers[finished.ticket] = finished.result
        return answers


@dataclass(slots=True, kw_only=True)
class RolloutWaiter:
    """While the recipe waits, whoever has work does it; after some of that, one is killed."""

    device: Device = field(default_factory=make_device)
    server: Server = field(default_factory=Server)
    num_turns: int = 0
    kill_recipe_at: int = -1
    kill_device_at: int = -1
    acts: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # the model is so small that threads only wait for each other

    def wait(self, request_id: str) -> None:
        self.num_turns += 1
        if self.num_turns == self.kill_recipe_at:
            raise ProcessKilled
        if self.num_turns == self.kill_device_at:
            name = self.device.setup.name
            queue.release_worker(worker=name)
            self.device = make_device(name)
        if act := self.acts.get(self.num_turns):
            act()
        has_worked = run_turn(self.device) or self.server.answer_waiting()
        assert has_worked, f"nothing to do, and {request_id} has not ended"
