"""An engine on one of several ranks: its share of every pass, and what the ranks add up.

Adapters and optimizers are the same on all ranks. Gradients are collected at rank 0 after each
pass, so what it does with them in between is nobody else's matter.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from training.engine.core import Engine
from training.engine.cut import cut_model, keep_own_gradients
from training.engine.cycle import Pack
from training.engine.families import check_agreement
from training.engine.full import FullRun
from training.engine.models import open_model
from training.engine.optim import check_params
from training.engine.orders import build
from training.engine.packing import Item
from training.engine.ranks import Ranks
from training.engine.recompute import recompute_layers
from training.engine.sharded import ShardedRun
from training.engine.shards import count_local_bytes, give_up, reclaim, run_whole, shard_model
from training.engine.tally import Tally, make_blank
from training.engine.traced import Meter
from training.errors import InvalidInput
from training.memory import Room
from training.model_files import digest_model
from training.types import (
    Datum,
    FloatArray,
    ForwardBackward,
    IntArray,
    LoraSpec,
    OptimizerParams,
    OptimStepOutput,
    StepOptions,
)

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
            tally.logprobs[item.index] = make_blank(item.datum)
        return tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one rank has to say of a request after its share of a pass."""

    loss: float
    num_scored: int
    num_loss_tokens: int
    num_sequences: int
    custom: Mapping[str, float]
    policy: Mapping[str, float]
    work: int
    error: InvalidInput | None
    logprobs: Mapping[int, FloatArray]  # by index
    routes: Mapping[int, IntArray]
    vectors: Mapping[int, FloatArray]

    @classmethod
    def of(cls, tally: Tally, head: Head, items: Sequence[Item]) -> "Found":
        return cls(
            loss=tally.loss,
            num_scored=tally.num_scored,
            num_loss_tokens=tally.num_loss_tokens,
            num_sequences=tally.num_sequences,
            custom=tally.custom,
            policy=tally.policy,
            work=tally.meter.work - head.work,
            error=tally.error,
            logprobs={item.index: tally.logprobs[item.index] for item in items},
            routes=tally.routes,
            vectors=tally.vectors,
        )

    def add_to(self, tally: Tally) -> None:
        tally.loss += self.loss
        tally.num_scored += self.num_scored
        tally.num_loss_tokens += self.num_loss_tokens
        tally.num_sequences += self.num_sequences
        tally.meter.work += self.work
        tally.error = tally.error or self.error
        for totals, own in ((tally.custom, self.custom), (tally.policy, self.policy)):
            for key, value in own.items():
                totals[key] = totals.get(key, 0.0) + value
        tally.routes.update(self.routes)
        tally.vectors.update(self.vectors)
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
    kept: dict[str, torch.Tensor]  # gradients to go back to, where all ranks have some

    @classmethod
    def load_on(
        cls,
        ranks: Ranks,
        path: Path,
        *,
        dtype: torch.dtype,
        token_budget: int,
        recompute: bool = False,
        room: Room | None = None,
        in_turns: bool = False,
    ) -> Self:
        act = partial(cls._read, ranks, path, dtype, token_budget)
        engine = build(ranks, act, in_turns=in_turns)
        engine.room = room
        engine.see_whole(partial(check_agreement, engine.model, engine.adapters))
        if ranks.plan.sharing == "fsdp":
            give_up(engine.model)
        if recompute:
            recompute_layers(engine.model, engine.adapters)
        reclaim(path)
        return engine

    @classmethod
    def _read(cls, ranks: Ranks, path: Path, dtype: torch.dtype, token_budget: int) -> Self:
        reclaim(path)
        sharing = ranks.plan.sharing
        # A model that no device can hold is cut on the CPU; only the pieces go to the devices.
        model = open_model(path, dtype, ranks.device if sharing == "replicas" else "cpu")
        engine = cls(
            model,
            path=path,
            base_digest=digest_model(path),
            token_budget=token_budget * (1 if sharing == "tensor" else ranks.plan.size),
        )
        engine.ranks, engine.round_budget, engine.kept = ranks, token_budget, {}
        if sharing == "fsdp":
            shard_model(model, ranks)
        elif sharing == "tensor":
            cut_model(model, engine.adapters, ranks)
            nn.Module.to(model, ranks.device)
        engine.adapters.device = torch.device(ranks.device)
        return engine

    @property
    def sharded(self) -> ShardedRun | None:
        """A full-parameter run, where every rank has its own rows of everything."""
        return self.full if isinstance(self.full, ShardedRun) else None

    def _make_full(self, run: str, spec: LoraSpec) -> FullRun:
        if self.ranks.plan.sharing == "replicas":
            return super()._make_full(run, spec)
        if self.ranks.plan.sharing == "tensor":
            raise InvalidInput(
                "this worker's ranks are tensor parallel, which trains adapters only: all weights"
                " are trained where HONE_SHARD is fsdp or replicas"
            )
        if spec.projection_head_dim:
            raise InvalidInput(
                "this worker's ranks cut a model's weights, and a projection head beside them is"
                " trained where HONE_SHARD is replicas, or on one rank"
            )
        return ShardedRun(run, spec, self.model, self.adapters.head, self.path, self.ranks)

    def see_whole(self, act: Callable[[], T]) -> T:
        if self.ranks.plan.sharing == "fsdp":
            return run_whole(self.model, act)
        return act()

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
            with self.summing_head(forward_only=forward_only):
                self._run_rounds(shares, tallies, forward_only=forward_only)
            flops = self.flops
        finally:
            self.flops = before
        if not forward_only and self.sharded is None:
            self._collect(list(heads))
        found = {run: Found.of(tallies[run], heads[run], items[run]) for run in heads}
        return self.ranks.tell_lead(Report(found=found, flops=flops))

    @contextmanager
    def summing_head(self, *, forward_only: bool) -> Iterator[None]:
        if self.sharded is None or forward_only:
            yield
            return
        sums_VH = self.sharded.open_sums()
        yield
        self.sharded.close_sums(sums_VH)

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
            self._run_own(Pack(items=items, forward_only=forward_only), tallies)
        if self.ranks.plan.sharing == "fsdp":  # layers are gathered from all ranks, by all ranks
            for _ in range(max(map(len, rounds)) - len(own)):
                self._idle(forward_only=forward_only)
            give_up(self.model)

    def _run_own(self, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        Engine.run_pack(self, pack, tallies)
        if self.sharded is not None:
            self.sharded.take_gradients()

    def _idle(self, *, forward_only: bool) -> None:
        """A row without weight: it goes where others' rows go, and changes nothing."""
        ids = np.zeros(1, np.int64)
        weights = np.zeros(1, np.float32)
        datum = Datum(tokens=ids, inputs={"target_tokens": ids, "weights": weights})
        request = ForwardBackward(data=[datum], forward_only=forward_only)
        pack = Pack(items=[Item(run=IDLE_RUN, index=0, datum=datum)], forward_only=forward_only)
        self._run_own(pack, {IDLE_RUN: Tally.empty(request)})

    def _collect(self, runs: Sequence[str]) -> None:
        for run in runs:
            gradients = self.find_weights(run).gradients
            if self.ranks.plan.sharing == "tensor":
                adapter = self.adapters.by_run[run]
                keep_own_gradients(self.adapters, adapter, is_lead=self.ranks.is_lead)
            dist.reduce(gradients, 0)
            if not self.ranks.is_lead:
                gradients.zero_()

    def take_step(
        self, run: str, params: OptimizerParams, options: StepOptions, divisor: int
    ) -> OptimStepOutput:
        weights, is_cut = self.find_weights(run), self.sharded is not None
        check_params(params)
        if not is_cut:
            dist.broadcast(weights.gradients, 0)
        output = super().take_step(run, params, options, divisor)
        seen = (output.metrics, None if is_cut else sum_bits(weights.values))
        self.ranks.agree(seen, f"the weights of run {run} after its step")
        return output

    def measure_norm(self, gradients: torch.Tensor) -> torch.Tensor:
        if self.sharded is not None:
            return self.sharded.measure_norm(gradients)
        return super().measure_norm(gradients)

    def keep_own(self, run: str) -> None:
        self.kept[run] = self.find_weights(run).gradients.clone()

    def restore_own(self, run: str) -> None:
        self.find_weights(run).gradients.copy_(self.kept.pop(run))

    def gather(self, run: str, kind: str, name: str) -> torch.Tensor:
        """The whole of one parameter, or of what belongs to it."""
        assert self.sharded is not None
        weights = self.sharded.weights
        own = {"values": weights.values, "gradients": weights.gradients}
        flat = {**own, **self.optimizers[run].moments}[kind]
        return self.sharded.gather(flat, name)

    def round_as_stored(self) -> None:
        assert self.sharded is not None
        self.sharded.round_as_stored()

    def refresh(self) -> None:
        assert self.sharded is not None
        self.sharded.training.refresh()

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
