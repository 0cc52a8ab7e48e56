"""A program on a trainer of its own: the job, a session and a model, and bodies as the SDK's."""

from dataclasses import dataclass, field
from typing import Any

from tests.webapp.firetitan.conftest import Program
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run


def make_job(program: Program, base_model: BaseModel, **columns: Any) -> TrainerJob:
    return TrainerJob.objects.create(
        project=program.actor.project,
        base_model=base_model,
        asked_model=base_model.name,
        inactivity_seconds=3600,
        **{"job_id": "j1", "state": TrainerJob.State.RUNNING, "display_name": "mine", **columns},
    )


def make_tensor(values: list[Any], dtype: str = "float32", **fields: Any) -> dict[str, Any]:
    return {"data": values, "dtype": dtype, "shape": [len(values)], **fields}


def make_datum(num_tokens: int = 4, **inputs: Any) -> dict[str, Any]:
    tokens = list(range(1, num_tokens + 1))
    targets = make_tensor([token + 1 for token in tokens], "int64")
    chunk = {"type": "encoded_text", "tokens": tokens}
    return {
        "model_input": {"chunks": [chunk]},
        "loss_fn_inputs": {"target_tokens": targets, **inputs},
    }


@dataclass(slots=True, kw_only=True)
class Trainer:
    """`seq` counts as the SDK does, over all operations of the model."""

    program: Program
    job: TrainerJob
    session_id: str = ""
    model_id: str = ""
    seq: int = field(default=0)

    def post(self, path: str, /, **fields: Any) -> Any:
        return self.send("POST", path, fields)

    def read(self, path: str) -> Any:
        return self.send("GET", path)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        trainer = f"/training/v1/rlorTrainerJobs/{self.program.account}/{self.job.job_id}/api/v1/"
        return self.program.send(method, trainer + path, body, **headers)

    @property
    def status(self) -> int:
        return self.program.status

    def open_session(self) -> str:
        opened = self.post("create_session", tags=[], user_metadata={}, sdk_version="0.23.0")
        self.session_id = str(opened["session_id"])
        return self.session_id

    def open_model(self, number: int = 0, rank: int = 8, **fields: Any) -> Any:
        asked = {"lora_config": {"rank": rank}, "base_model": self.job.asked_model, **fields}
        promise = self.post(
            "create_model", session_id=self.session_id, model_seq_id=number, **asked
        )
        self.model_id = promise.get("model_id", self.model_id)
        return promise

    def ask(self, path: str, /, **fields: Any) -> Any:
        """With the next number, as every operation has one."""
        self.seq += 1
        return self.post(path, model_id=self.model_id, seq_id=self.seq, **fields)

    def learn(self, *data: Any, loss_fn: str = "cross_entropy", **fields: Any) -> Any:
        content = {"data": list(data) or [make_datum()], "loss_fn": loss_fn, **fields}
        return self.ask("forward_backward", forward_backward_input=content)

    def score(self, *data: Any, **fields: Any) -> Any:
        content = {"data": list(data) or [make_datum()], "loss_fn": "cross_entropy", **fields}
        return self.ask("forward", forward_input=content)

    @property
    def run(self) -> Run:
        return Run.objects.get(session=self.session_id, model_seq_id=0)

    @property
    def last(self) -> Operation:
        return Operation.objects.get(run=self.run, seq=self.seq)
