"""Model behind the queue: what recipes speak to in production."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from redis import RedisError
from redis.client import PubSub

from training.errors import InvalidInput
from training.types import (
    AdamParams,
    CheckpointKind,
    Datum,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
    OptimStepOutput,
    Probe,
    SavedWeights,
)
from webapp.checkpoints.models import Checkpoint
from webapp.core.events import FINISHED, connection
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.wire.passes import decode_output, encode_forward_backward

POLL_SECONDS = 1.0  # where a wake-up was lost
CHUNK = 200  # recorded operations that a replay reads at once

Kind = Operation.Kind
Status = Operation.Status
T = TypeVar("T")


class OperationFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """The server's fault; the text is what the run shows."""


class Waiter(Protocol):
    """Passes the time until a request may have ended; coming back early costs a query."""

    def wait(self, request_id: str) -> None: ...


class RedisWaiter:
    """Wakes when the request's end is announced, or after a moment."""

    def __init__(self) -> None:
        self.pubsub: PubSub | None = None

    def __enter__(self) -> "RedisWaiter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pubsub is not None:
            self.pubsub.close()

    def wait(self, request_id: str) -> None:
        deadline = time.monotonic() + POLL_SECONDS
        try:
            pubsub = self._subscribe()
            while (left := deadline - time.monotonic()) > 0:
                message = pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
                if message is not None and message["data"] == request_id.encode():
                    return
        except RedisError:
            self.pubsub = None
            time.sleep(max(0.0, deadline - time.monotonic()))

    def _subscribe(self) -> PubSub:
        if self.pubsub is None:
            self.pubsub = PubSub(connection().connection_pool)
            self.pubsub.subscribe(FINISHED)
        return self.pubsub


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an operation or a call ended."""

    result: bytes
    error: str = ""
    category: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class RemoteFuture(Generic[T]):
    """A result that a worker makes. `was_recorded`: it was there before this driver came."""

    request_id: str
    look: Callable[[], Ended | None]
    read: Callable[[bytes], T]
    waiter: Waiter
    keep_going: Callable[[], None]  # raises what the recipe is to end with
    was_recorded: bool = False

    def is_over(self) -> bool:
        return self.look() is not None

    def result(self, timeout: float | None = None) -> T:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (ended := self.look()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"no worker answered within {timeout:g} s")
            self.keep_going()
            self.waiter.wait(self.request_id)
        if not ended.error:
            return self.read(ended.result)
        if ended.category == "user":
            raise InvalidInput(ended.error)
        raise OperationFailed(ended.error)


@dataclass(slots=True, kw_only=True, eq=False)
class RemoteModel:
    """The run's operations in order. What the log holds already is answered from the log.

    A recipe that is started again calls the same verbs in the same order; their bytes may differ
    by a learning rate that was changed meanwhile, and the log's are the ones that count.
    """

    run: Run
    waiter: Waiter
    keep_going: Callable[[], None]
    seq: int = 0
    num_steps: int = 0  # optimizer steps so far, counting those on their way
    last_recorded: int = -1
    recorded: dict[int, Operation] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Run, *, waiter: Waiter, keep_going: Callable[[], None]) -> "RemoteModel":
        last = Operation.objects.filter(run=run).order_by("seq").last()
        return cls(
            run=run,
            waiter=waiter,
            keep_going=keep_going,
            last_recorded=-1 if last is None else last.seq,
        )

    @property
    def is_replaying(self) -> bool:
        return self.seq <= self.last_recorded

    def skip_to_end(self) -> None:
        """Behind everything that was submitted; a save that is the last may be asked for again."""
        rows = Operation.objects.filter(run=self.run)
        ends_with_save = rows.filter(seq=self.last_recorded, kind=Kind.SAVE_WEIGHTS).exists()
        self.seq = self.last_recorded + (0 if ends_with_save else 1)
        steps = rows.filter(kind=Kind.OPTIM_STEP).exclude(status=Status.FAILED)
        self.num_steps = steps.count()

    def create(self) -> RemoteFuture[None]:
        """Fresh weights, or the parent's: a run's first operation."""
        parent = self.run.parent_id
        if parent is not None:
            return self.load_weights(parent, optimizer=self.run.with_optimizer)
        spec = asdict(LoraSpec(rank=self.run.rank, **self.run.lora))
        return self._send(Kind.CREATE_MODEL, spec, _read_nothing)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        config: Mapping[str, float | str] | None = None,
        forward_only: bool = False,
    ) -> RemoteFuture[ForwardBackwardOutput]:
        request = ForwardBackward(
            data=data, loss_fn=loss_fn, config=config or {}, forward_only=forward_only
        )

        def encode() -> bytes:
            return encode_forward_backward(self.run.model_id, self.seq, request)

        return self._submit(
            Kind.FORWARD_BACKWARD,
            encode,
            decode_output,
            num_tokens=request.num_tokens,
            forward_only=forward_only,
        )

    def optim_step(self, adam: AdamParams) -> RemoteFuture[OptimStepOutput]:
        self.num_steps += 1
        return self._send(Kind.OPTIM_STEP, {"adam_params": asdict(adam)}, _read_step)

    def save_weights(
        self, name: str, *, kind: CheckpointKind, ttl_seconds: int | None = None
    ) -> RemoteFuture[SavedWeights]:
        return self._save(name, kind, ttl_seconds, lambda body: describe(_read_checkpoint(body)))

    def save_checkpoint(
        self, name: str, *, kind: CheckpointKind, ttl_seconds: int | None = None
    ) -> RemoteFuture[Checkpoint]:
        """As `save_weights`; answers with the row. What has a time to live is nobody's to keep."""
        return self._save(name, kind, ttl_seconds, _read_checkpoint)

    def _save(
        self,
        name: str,
        kind: CheckpointKind,
        ttl_seconds: int | None,
        read: Callable[[bytes], T],
    ) -> RemoteFuture[T]:
        verb = Kind.SAVE_WEIGHTS if kind == "training" else Kind.SAVE_WEIGHTS_FOR_SAMPLER
        is_ephemeral = ttl_seconds is not None
        content = {"name": name, "ttl_seconds": ttl_seconds, "is_ephemeral": is_ephemeral}
        return self._send(verb, content, read)

    def load_weights(self, path: str, *, optimizer: bool) -> RemoteFuture[None]:
        """`path` is a checkpoint's id."""
        content = {"checkpoint": path, "optimizer": optimizer}
        return self._send(Kind.LOAD_WEIGHTS, content, _read_nothing)

    def _send(
        self, kind: str, content: Mapping[str, Any], read: Callable[[bytes], T]
    ) -> RemoteFuture[T]:
        return self._submit(kind, lambda: json.dumps(content).encode(), read)

    def _submit(
        self,
        kind: str,
        encode: Callable[[], bytes],
        read: Callable[[bytes], T],
        **columns: Any,
    ) -> RemoteFuture[T]:
        operation = self._find_recorded(kind)
        was_recorded = operation is not None
        if operation is None:
            operation = queue.submit_operation(
                self.run, seq=self.seq, kind=kind, payload=encode(), **columns
            )
        self.seq += 1
        first = operation
        return RemoteFuture(
            request_id=operation.request_id,
            look=lambda: _look(first),
            read=read,
            waiter=self.waiter,
            keep_going=self.keep_going,
            was_recorded=was_recorded,
        )

    def _find_recorded(self, kind: str) -> Operation | None:
        if not self.is_replaying:
            return None
        if self.seq not in self.recorded:
            rows = Operation.objects.filter(run=self.run, seq__gte=self.seq).defer("payload")
            self.recorded = {row.seq: row for row in rows.order_by("seq")[:CHUNK]}
        operation = self.recorded.pop(self.seq)
        if operation.kind != kind:
            raise RuntimeError(
                f"{self.run.pk}: the recipe asks for {kind} where its log has {operation}"
            )
        return operation


def _look(operation: Operation) -> Ended | None:
    """The row is read again until it has ended; after that it does not change."""
    if operation.status not in queue.ENDED:
        operation.refresh_from_db(fields=["status", "result", "error", "error_category"])
    if operation.status not in queue.ENDED:
        return None
    failed = operation.status != Status.DONE
    return Ended(
        result=bytes(operation.result or b""),
        error=operation.error or ("internal error" if failed else ""),
        category=operation.error_category,
    )


def _read_nothing(_body: bytes) -> None:
    return None


def _read_step(body: bytes) -> OptimStepOutput:
    return OptimStepOutput(metrics=json.loads(body)["metrics"])


def _read_checkpoint(body: bytes) -> Checkpoint:
    rows = Checkpoint.objects.select_related("run", "base_model", "project")
    return rows.get(pk=json.loads(body)["checkpoint"])


def describe(checkpoint: Checkpoint) -> SavedWeights:
    probe = {key: tuple(values) for key, values in checkpoint.probe.items()}
    return SavedWeights(
        digest=checkpoint.digest,
        size_bytes=checkpoint.size_bytes,
        has_optimizer=checkpoint.has_optimizer,
        probe=Probe(**probe),
    )
