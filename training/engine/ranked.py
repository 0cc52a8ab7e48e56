"""An engine on one of several ranks: its share of every pass, and what the ranks add up.

Adapters and optimizers are the same on all ranks. Gradients are collected at rank 0 after each
pass, so what it does with them in between is nobody else's matter.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from training.engine import checkpoint
from training.engine.core import Engine, open_model
from training.engine.cycle import Pack
from training.engine.families import check_agreement
from training.engine.packing import Item
from training.engine.passes import Tally
from training.engine.probes import make_probe
from training.engine.ranks import Ranks
from training.engine.shards import count_local_bytes, give_up, run_whole, shard_model
from training.engine.traced import Meter
from training.errors import InvalidInput
from training.types import FloatArray, ForwardBackward, IntArray, OptimizerParams, OptimStepOutput

T = TypeVar("T")
NOTHING = np.zeros(0, np.float32)
IDLE_RUN = ""  # nobody's: rows that are there only because other ranks have some


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a rank must know of a request besides the data that are its share."""

    request: ForwardBackward  # without data
    num_datums: int
    work: int  # what its losses have cost so far

    @classmethod
    def of(cls, tally: Tally) -> "Head":
        request = replace(tally.request, data=())
        return cls(request=request, num_datums=len(tally.request.data), work=tally.meter.work)

    def open(self, items: Sequence[Item]) -> Tally:
        tally = Tally(
            request=self.request,
            logprobs=[NOTHING] * self.num_datums,
            meter=Meter(work=self.work),
        )
        for item in items:
            shape = item.datum.inputs["target_tokens"].shape
            tally.logprobs[item.index] = np.zeros(shape, np.float32)
        return tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one rank has to say of a request after its share of a pass."""

    loss: float
    num_scored: int
    custom: Mapping[str, float]
    policy: Mapping[str, float]
    work: int
    error: InvalidInput | None
    logprobs: Mapping[int, FloatArray]  # by index
    routes: Mapping[int, IntArray]

    @classmethod
    def of(cls, tally: Tally, head: Head, items: Sequence[Item]) -> "Found":
        return cls(
            loss=tally.loss,
            num_scored=tally.num_scored,
            custom=tally.custom,
            policy=tally.policy,
            work=tally.meter.work - head.work,
            error=tally.error,
            logprobs={item.index: tally.logprobs[item.index] for item in items},
            routes=tally.routes,
        )

    def add_to(self, tally: Tally) -> None:
        tally.loss += self.loss
        tally.num_scored += self.num_scored
        tally.meter.work += self.work
        tally.error = tally.error or self.error
        for totals, own in ((tally.custom, self.custom), (tally.policy, self.policy)):
            for key, value in own.items():
                totals[key] = totals.get(key, 0.0) + value
        tally.routes.update(self.routes)
        for index, logprobs in self.logprobs.items():
            tally.logprobs[index][:] = logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's part of a pass."""

    found: Mapping[str, Found]
    flops: float


class RankedEngine(Engine):
    """Call every verb on all ranks, in the same order."""

    ranks: Ranks
    round_budget: int  # of one rank's part of a pass

    @classmethod
    def load_on(cls, ranks: Ranks, path: Path, *, dtype: torch.dtype, token_budget: int) -> Self:
        is_sharded = ranks.plan.sharing == "fsdp"
        # A model that no device can hold is cut on the CPU; only the pieces go to the devices.
        model = open_model(path, dtype, "cpu" if is_sharded else ranks.device)
        engine = cls(
            model,
            path=path,
            base_digest=checkpoint.digest_model(path),
            token_budget=token_budget * ranks.plan.size,
        )
        engine.ranks, engine.round_budget = ranks, token_budget
        if is_sharded:
            shard_model(model, ranks)
            engine.adapters.device = torch.device(ranks.device)
        engine.see_whole(partial(check_agreement, model, engine.adapters))
        return engine

    def see_whole(self, act: Callable[[], T]) -> T:
        if self.ranks.plan.sharing == "replicas":
            return act()
        return run_whole(self.model, act)

    def run_shares(
        self,
        shares: Sequence[Sequence[Item]],
        heads: Mapping[str, Head],
        *,
        forward_only: bool,
    ) -> Sequence[Report]:
        """Every rank's report, for rank 0. All ranks make equally many passes."""
        own = shares[self.ranks.rank]
        items = {run: [item for item in own if item.run == run] for run in heads}
        tallies = {run: head.open(items[run]) for run, head in heads.items()}
        before, self.flops = self.flops, 0.0
        try:
            self._run_rounds(shares, tallies, forward_only=forward_only)
            flops = self.flops
        finally:
            self.flops = before
        if not forward_only:
            self._collect(list(heads))
        found = {run: Found.of(tallies[run], heads[run], items[run]) for run in heads}
        return self.ranks.tell_lead(Report(found=found, flops=flops))

    def _run_rounds(
        self,
        shares: Sequence[Sequence[Item]],
        tallies: Mapping[str, Tally],
        *,
        forward_only: bool,
    ) -> None:
        rounds = [fill(share, self.round_budget) for share in shares]
        own = rounds[self.ranks.rank]
        for items in own:
            Engine.run_pack(self, Pack(items=items, forward_only=forward_only), tallies)
        if self.ranks.plan.sharing == "fsdp":  # layers are gathered from all ranks, by all ranks
            for _ in range(max(map(len, rounds)) - len(own)):
                self._idle(forward_only=forward_only)
            give_up(self.model)

    def _idle(self, *, forward_only: bool) -> None:
        request = replace(make_probe((0, 0)), forward_only=forward_only)
        item = Item(run=IDLE_RUN, index=0, datum=request.data[0])
        pack = Pack(items=[item], forward_only=forward_only)
        Engine.run_pack(self, pack, {IDLE_RUN: Tally.empty(request)})

    def _collect(self, runs: Sequence[str]) -> None:
        for run in runs:
            gradients = self._adapter(run).gradients
            dist.reduce(gradients, 0)
            if not self.ranks.is_lead:
                gradients.zero_()

    def optim_step(self, run: str, params: OptimizerParams) -> OptimStepOutput:
        adapter = self._adapter(run)
        dist.broadcast(adapter.gradients, 0)
        output = super().optim_step(run, params)
        seen = (output.metrics, sum_bits(adapter.values))
        self.ranks.agree(seen, f"the weights of run {run} after its step")
        if not self.ranks.is_lead:
            adapter.gradients.zero_()
        return output

    def count_bytes(self) -> list[int]:
        """Of the base model's weights, by rank."""
        return self.ranks.tell_all(count_local_bytes(self.model))


def sum_bits(values: torch.Tensor) -> int:
    """Equal for equal tensors, and cheap. Whatever order a device sums in, whole numbers do not
    differ by it.
    """
    return int(values.view(torch.int32).sum(dtype=torch.int64))


def cut_shares(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Neighbours, which may share tokens, stay together; the largest share is as small as can be.
    Some are empty where items are few.
    """
    least = max(item.length for item in items)
    most = sum(item.length for item in items)
    limits = range(least, most)
    place = bisect_left(limits, True, key=lambda limit: len(fill(items, limit)) <= size)
    shares = fill(items, least + place)
    return shares + [[] for _ in range(size - len(shares))]


def fill(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """As they come, so many tokens together; a longer item is by itself."""
    packs: list[list[Item]] = []
    room = 0
    for item in items:
        if item.length > room or not packs:
            packs.append([])
            room = limit
        packs[-1].append(item)
        room -= item.length
    return packs
