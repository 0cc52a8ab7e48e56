"""What tests of the workers share: the tiny model, a device, and a program's operations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.webapp.cast import make_actor, make_run
from training.types import Datum, ForwardBackward, ForwardBackwardOutput
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.runs.refusals import refuse_operation
from webapp.wire.passes import decode_output, encode_forward_backward
from workers.device import Device, Setup
from workers.gpu import run_turn

TINY = Path(__file__).parents[1] / "assets" / "tiny-chatml-1m"
Kind = Operation.Kind
LORA = {
    "rank": 4,
    "alpha": 32.0,
    "seed": 3,
    "train_mlp": True,
    "train_attn": True,
    "train_unembed": False,
}


def make_tiny() -> BaseModel:
    return add_base_model(path=str(TINY), names=["tiny"])


def make_client_run(number: int = 0) -> Run:
    base_model = BaseModel.objects.first() or make_tiny()
    return make_run(make_actor(f"user{number}"), base_model, model_seq_id=number)


def make_device(name: str = "w1", **settings: Any) -> Device:
    return Device(setup=Setup(name=name, **settings))


def take_turns(device: Device, limit: int = 200) -> int:
    """How many turns it took until nothing was left."""
    for count in range(limit):
        if not run_turn(device):
            return count
    raise AssertionError("the device found no end")


def make_datum(seed: int, length: int = 12) -> Datum:
    tokens = np.random.default_rng(seed).integers(4, 500, length + 1)
    weights = np.ones(length, dtype=np.float32)
    return Datum(tokens=tokens[:-1], inputs={"target_tokens": tokens[1:], "weights": weights})


@dataclass(slots=True, kw_only=True)
class Program:
    """A client's loop: its operations get the next seq, and nothing waits."""

    run: Run = field(default_factory=make_client_run)
    seq: int = 0

    def submit(self, kind: str, payload: bytes, **columns: Any) -> Operation:
        operation = queue.submit_operation(
            self.run, seq=self.seq, kind=kind, payload=payload, **columns
        )
        self.seq += 1
        return operation

    def send(self, kind: str, **content: Any) -> Operation:
        return self.submit(kind, json.dumps(content).encode())

    def create(self, **changes: Any) -> Operation:
        return self.send(Kind.CREATE_MODEL, **(LORA | changes))

    def learn(self, seed: int, **settings: Any) -> Operation:
        return self.learn_from([make_datum(seed), make_datum(seed + 1000, 7)], **settings)

    def learn_from(self, data: Sequence[Datum], **settings: Any) -> Operation:
        request = ForwardBackward(data=data, **settings)
        body = encode_forward_backward(self.run.model_id, self.seq, request)
        return self.submit(
            Kind.FORWARD_BACKWARD,
            body,
            num_tokens=request.num_tokens,
            forward_only=request.forward_only,
        )

    def be_refused(self, kind: str = Kind.FORWARD_BACKWARD, **columns: Any) -> None:
        """As a request that was answered with a 4xx: its number is used up."""
        refuse_operation(self.run, seq=self.seq, kind=kind, error="no", **columns)
        self.seq += 1

    def step(self, learning_rate: float = 1e-2, **options: str) -> Operation:
        adam = {"learning_rate": learning_rate}
        return self.send(Kind.OPTIM_STEP, adam_params=adam, **options)

    def step_dimuon(self) -> Operation:
        return self.send(Kind.OPTIM_STEP, dimuon_params={"learning_rate": 0.02})

    def train(self, steps: range) -> list[Operation]:
        """A forward_backward and a step for each number; returns the forward_backwards."""
        operations = []
        for number in steps:
            operations.append(self.learn(number))
            self.step()
        return operations


def read_output(operation: Operation) -> ForwardBackwardOutput:
    operation.refresh_from_db()
    assert operation.status == Operation.Status.DONE, operation.error
    return decode_output(bytes(operation.result or b""))


def read_loss(operation: Operation) -> float:
    return read_output(operation).metrics["loss:sum"]


def read_answer(operation: Operation) -> dict[str, Any]:
    operation.refresh_from_db()
    assert operation.status == Operation.Status.DONE, operation.error
    answer: dict[str, Any] = json.loads(bytes(operation.result or b""))
    return answer
