"""Rank 0 of several: engines whose verbs are done by all ranks, each on its part of the work."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from training.engine.cycle import Pack
from training.engine.elastic import Followers
from training.engine.full import FullRun
from training.engine.orders import Order, obey
from training.engine.ranked import Head, RankedEngine, cut_shares
from training.engine.ranks import Plan
from training.engine.shards import count_file_bytes
from training.engine.tally import Tally
from training.memory import Room
from training.types import (
    LoraSpec,
    Optimizer,
    OptimizerParams,
    OptimStepOutput,
    Probe,
    StepOptions,
)

SHARE_OF_HOST = 0.5  # for models that are being read

T = TypeVar("T")


class Lead:
    """Gives the orders. `lose` is told why the ranks cannot go on, and does not return."""

    def __init__(self, plan: Plan, lose: Callable[[str], None]) -> None:
        plan.check()
        self.lose = lose
        self.numbers = count(1)
        self.followers = Followers(plan, lose)
        self.ranks = self.followers.start()

    def load(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        token_budget: int,
        recompute: bool = False,
        room: Room | None = None,
    ) -> "LeadEngine":
        number = next(self.numbers)
        asked: dict[str, Any] = {
            "dtype": dtype,
            "token_budget": token_budget,
            "recompute": recompute,
            "room": room,
            "in_turns": self.must_take_turns(path),
        }
        load = partial(LeadEngine.load_on, self.ranks, path, **asked)
        engine = self.order(Order(verb="load", engine=number, args=(path,), kwargs=asked), load)
        assert isinstance(engine, LeadEngine)
        engine.lead, engine.number = self, number
        return engine

    def must_take_turns(self, path: Path) -> bool:
        """Every rank reads the whole model before it is cut, perhaps in a wider type."""
        read = 2 * self.ranks.plan.size * count_file_bytes(path)
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.ranks.plan.sharing != "replicas" and read > SHARE_OF_HOST * host

    def close(self, engine: "LeadEngine") -> None:
        """The other ranks forget it too."""
        self.order(Order(verb="close", engine=engine.number), lambda: None)

    def order(self, order: Order, act: Callable[[], T]) -> T:
        try:
            self.ranks.hear(order)
            return obey(self.ranks, order, act)
        except order.failures:
            raise
        except BaseException as error:
            self.lose(f"{order.verb} broke off: {error!r}")
            raise

    def end(self) -> None:
        """Every rank's process ends. In the order in which they came nothing is left waiting."""
        self.followers.is_ending = True
        self.ranks.hear(Order())
        self.ranks.leave()
        self.followers.end()


class Gathered(Mapping[str, torch.Tensor]):
    """Whole tensors, put together when they are asked for. The last two stay: the files of a
    mixture ask for the same two tensors of a layer once for each of its experts."""

    def __init__(
        self, places: Mapping[str, tuple[str, str]], gather: Callable[[str, str], torch.Tensor]
    ) -> None:
        self.places, self.gather = places, gather
        self.last: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.last:
            self.last = dict(list(self.last.items())[-1:])
            self.last[name] = self.gather(*self.places[name])
        return self.last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class LeadEngine(RankedEngine):
    lead: Lead
    number: int
    is_ordering = False

    def _order(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        act = partial(getattr(RankedEngine, verb), self, *args, **kwargs)
        if self.is_ordering:  # a verb that is part of another one: the others do it unasked
            return act()
        self.is_ordering = True
        try:
            order = Order(verb=verb, engine=self.number, args=args, kwargs=kwargs)
            return self.lead.order(order, act)
        finally:
            self.is_ordering = False

    def create_adapter(self, run: str, spec: LoraSpec, kind: Optimizer = "adamw") -> None:
        self._order("create_adapter", run, spec, kind)

    def drop(self, run: str) -> None:
        self._order("drop", run)

    def load_weights(
        self, run: str, folder: Path, *, optimizer: bool, kind: Optimizer = "adamw"
    ) -> None:
        self._order("load_weights", run, folder, optimizer=optimizer, kind=kind)

    def load_adapter(self, run: str, folder: Path) -> None:
        self._order("load_adapter", run, folder)

    def drop_gradients(self, run: str) -> None:
        self._order("drop_gradients", run)

    def keep_gradients(self, run: str) -> torch.Tensor:
        if self.sharded is None:
            return super().keep_gradients(run)
        self._order("keep_own", run)
        return self.kept[run]

    def restore_gradients(self, run: str, kept: torch.Tensor) -> None:
        if self.sharded is None:
            super().restore_gradients(run, kept)
        else:
            self._order("restore_own", run)

    def _probe_stored(self, full: FullRun) -> Probe:
        if self.sharded is None or full.files.are_exact:
            return super()._probe_stored(full)
        self._order("round_as_stored")
        try:
            return self.probe(full.name)
        finally:
            self._order("refresh")

    def gather_whole(self, run: str, kind: str, name: str) -> torch.Tensor:
        """`kind`: values, gradients, or one of the optimizer's moments."""
        gathered: torch.Tensor = self._order("gather", run, kind, name)
        return gathered

    def _list_whole(self, full: FullRun) -> Mapping[str, torch.Tensor]:
        if self.sharded is None:
            return super()._list_whole(full)
        places = {name: ("values", name) for name in full.weights.shapes}
        return Gathered(places, partial(self.gather_whole, full.name))

    def _list_moments(self, full: FullRun) -> Mapping[str, torch.Tensor]:
        if self.sharded is None:
            return super()._list_moments(full)
        kinds = self.optimizers[full.name].moments
        places = {f"{name}.{kind}": (kind, name) for kind in kinds for name in full.weights.shapes}
        return Gathered(places, partial(self.gather_whole, full.name))

    def take_step(
        self, run: str, params: OptimizerParams, options: StepOptions, divisor: int
    ) -> OptimStepOutput:
        output: OptimStepOutput = self._order("take_step", run, params, options, divisor)
        return output

    def count_bytes(self) -> list[int]:
        counted: list[int] = self._order("count_bytes")
        return counted

    def run_pack(self, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        heads = {run: Head.of(tallies[run]) for run in pack.runs}
        plan = self.ranks.plan
        is_same = plan.sharing == "tensor"  # every rank has all rows, and finds the same
        shares = [list(pack.items)] * plan.size if is_same else cut_shares(pack.items, plan.size)
        told = self._order("run_shares", shares, heads, forward_only=pack.forward_only)
        for report in told[: 1 if is_same else None]:
            self.flops += report.flops
            for run, found in report.found.items():
                found.add_to(tallies[run])
