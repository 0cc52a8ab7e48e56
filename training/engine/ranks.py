"""The process group that holds one model together: who is in it, and what its members tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from training.errors import InvalidInput

HOST = "127.0.0.1"  # all ranks of a worker are on its machine
LIMIT_SECONDS = 600.0  # how long a rank waits for the others in the middle of something
IDLE = timedelta(days=365)  # between two orders; a rank that dies meanwhile is noticed all the same

Sharing = Literal["fsdp", "replicas", "tensor"]
SHARINGS: Mapping[Sharing, str] = {
    "fsdp": "sharded",
    "replicas": "replicas",
    "tensor": "tensor parallel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many ranks hold a model, and how: a piece of every layer each, which are put together
    where they are used (fsdp), a copy each (replicas), or a part of every layer's work (tensor).
    """

    size: int
    sharing: Sharing = "fsdp"
    device: str = "cpu"
    limit_seconds: float = LIMIT_SECONDS

    def check(self) -> None:
        if self.sharing not in SHARINGS:
            raise InvalidInput(
                f"models are shared over ranks by {' or '.join(SHARINGS)}, not by {self.sharing!r}"
            )
        available = torch.cuda.device_count() if self.device == "cuda" else self.size
        if self.size < 1:
            raise InvalidInput(f"{self.size} ranks hold nothing: say 1 or more")
        if self.size > available:
            raise InvalidInput(f"{self.size} ranks need a device each, and {available} are here")

    def name_device(self, rank: int) -> str:
        return f"cuda:{rank}" if self.device == "cuda" else self.device

    @property
    def num_pieces(self) -> int:
        """Of every layer's weights."""
        return 1 if self.sharing == "replicas" else self.size

    @property
    def num_threads(self) -> int:
        """Of each rank on the CPU: they share its cores."""
        return max(1, torch.get_num_threads() // self.size)

    def __str__(self) -> str:
        return f"{self.size} ranks, {SHARINGS[self.sharing]}"


class OutOfStep(RuntimeError):  # noqa: N818 - says what the ranks are
    """The ranks do not hold the same any more. All of them notice it, at the same place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """This process among the others. Rank 0 is the worker's own; the others follow it."""

    plan: Plan
    rank: int
    mesh: DeviceMesh
    words: dist.ProcessGroup  # for what is small, on the CPU
    orders: dist.ProcessGroup  # the same, without a time limit

    @classmethod
    def join(cls, store: TCPStore, rank: int, plan: Plan) -> "Ranks":
        """Waits until all are there. A process is in one group at a time."""
        limit = timedelta(seconds=plan.limit_seconds)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if plan.device == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=plan.size,
            timeout=limit,
        )
        if plan.device == "cuda":
            torch.cuda.set_device(rank)
        return cls(
            plan=plan,
            rank=rank,
            mesh=init_device_mesh(plan.device, (plan.size,)),
            words=dist.new_group(backend="gloo", timeout=limit),
            orders=dist.new_group(backend="gloo", timeout=IDLE),
        )

    def leave(self) -> None:
        dist.destroy_process_group()

    @property
    def is_lead(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> str:
        return self.plan.name_device(self.rank)

    def hear(self, order: Any = None) -> Any:
        """What rank 0 gives, once it gives something."""
        told = [order]
        dist.broadcast_object_list(told, src=0, group=self.orders)
        return told[0]

    def tell_all(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        values = [None] * self.plan.size
        dist.all_gather_object(values, value, group=self.words)
        return values

    def tell_lead(self, value: Any) -> Sequence[Any]:
        """By rank; nothing for the others."""
        values = [None] * self.plan.size if self.is_lead else None
        dist.gather_object(value, values, dst=0, group=self.words)
        return values or []

    def agree(self, value: Any, subject: str) -> None:
        """Everybody has this value, or everybody raises OutOfStep."""
        values = self.tell_all(value)
        if any(other != value for other in values):
            raise OutOfStep(f"the ranks of this worker differ on {subject}: {values}")

    def add_up(self, tensor: torch.Tensor) -> None:
        """In place: the sum of all ranks' tensors, equal to the bit on each of them."""
        dist.all_reduce(tensor)
