"""One pass over one packed row: hidden states, log-probabilities, losses, and whose they are.

Shapes: T tokens of the row, H hidden size, P positions that are projected on the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from training.engine.attention import Segments
from training.engine.logprobs import compute_logprobs
from training.engine.lora import Adapters, Slice
from training.engine.losses import compute_loss
from training.engine.packing import Item, Part, split_parts
from training.engine.requests import LOGPROBS, LOSS_INPUTS, find_scored
from training.types import Datum, FloatArray, ForwardBackward, ForwardBackwardOutput, IntArray


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the passes have found out about one request so far."""

    request: ForwardBackward
    logprobs: list[FloatArray]
    loss: float = 0.0
    num_scored: int = 0

    @classmethod
    def empty(cls, request: ForwardBackward) -> "Tally":
        zeros = [np.zeros(len(datum.tokens), np.float32) for datum in request.data]
        return cls(request=request, logprobs=zeros)

    def finish(self) -> ForwardBackwardOutput:
        metrics = {
            "loss:sum": self.loss,
            "num_datums:sum": float(len(self.request.data)),
            "num_tokens:sum": float(self.request.num_tokens),
            "num_scored:sum": float(self.num_scored),
        }
        if self.request.loss_fn == "cross_entropy":
            weights = [read_input(datum, "weights") for datum in self.request.data]
            metrics["weights:sum"] = float(sum(weight.sum() for weight in weights))
        return ForwardBackwardOutput(logprobs=self.logprobs, metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A pack as arrays over its tokens. `scored`: has a gradient; `wanted`: only to be told."""

    parts: Sequence[Part]
    segments: Segments
    tokens: IntArray
    positions: IntArray
    targets: IntArray
    scored: NDArray[np.int64]  # (P,) indices
    wanted: NDArray[np.int64]  # (P,) the others whose log-probability is reported


def read_input(datum: Datum, name: str) -> FloatArray:
    """Float32 of a loss input; weights that were not sent are ones."""
    if name not in datum.inputs:
        return np.ones(len(datum.tokens), np.float32)
    return datum.inputs[name].astype(np.float32, copy=False)


def lay_out(pack: Sequence[Item], requests: Mapping[str, ForwardBackward]) -> Row:
    scored_T = np.concatenate(
        [find_scored(item.datum, requests[item.run].loss_fn) for item in pack]
    )
    silent_T = np.concatenate(
        [
            np.full(item.length, requests[item.run].config.get(LOGPROBS) == "weighted")
            for item in pack
        ]
    )
    return Row(
        parts=split_parts(pack),
        segments=Segments.of([item.length for item in pack]),
        tokens=np.concatenate([item.datum.tokens for item in pack]),
        positions=np.concatenate([np.arange(item.length) for item in pack]),
        targets=np.concatenate([item.datum.inputs["target_tokens"] for item in pack]),
        scored=np.flatnonzero(scored_T),
        wanted=np.flatnonzero(~scored_T & ~silent_T),
    )


def run_pass(
    model: PreTrainedModel,
    adapters: Adapters,
    pack: Sequence[Item],
    tallies: Mapping[str, Tally],
) -> torch.Tensor:
    """Adds to the tallies; returns the sum of the losses, to be differentiated by the caller."""
    row = lay_out(pack, {run: tally.request for run, tally in tallies.items()})
    slices = [part.where for part in row.parts]
    with adapters.serve(slices):
        hidden_TH = read_hidden(model, row, adapters.device)
    logprobs_P = project(adapters, row, hidden_TH, row.scored)
    with torch.no_grad():
        others_P = project(adapters, row, hidden_TH, row.wanted)
    told_T = np.zeros(len(row.tokens), np.float32)
    told_T[row.scored] = logprobs_P.detach().cpu().numpy()
    told_T[row.wanted] = others_P.cpu().numpy()
    store_logprobs(row, told_T, tallies)
    return sum_losses(row, logprobs_P, tallies)


def read_hidden(model: PreTrainedModel, row: Row, device: torch.device) -> torch.Tensor:
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    output = decoder(
        input_ids=torch.from_numpy(row.tokens)[None].to(device),
        position_ids=torch.from_numpy(row.positions)[None].to(device),
        segments=row.segments,
        use_cache=False,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def project(
    adapters: Adapters, row: Row, hidden_TH: torch.Tensor, indices: NDArray[np.int64]
) -> torch.Tensor:
    """Log-probabilities of the targets at some positions of the row."""
    rows_P = torch.from_numpy(indices).to(hidden_TH.device)
    targets_P = torch.from_numpy(row.targets[indices]).to(hidden_TH.device)
    active = adapters.head.find_active([find_range(part, indices) for part in row.parts])
    return compute_logprobs(hidden_TH[rows_P], targets_P, adapters.head, active)


def find_range(part: Part, indices: NDArray[np.int64]) -> Slice:
    """Where among the chosen positions those of a part lie."""
    start, stop = np.searchsorted(indices, [part.where.start, part.where.stop])
    return Slice(part.where.run, int(start), int(stop))


def store_logprobs(row: Row, told_T: FloatArray, tallies: Mapping[str, Tally]) -> None:
    for part in row.parts:
        start = part.where.start
        for item in part.items:
            tallies[item.run].logprobs[item.index][:] = told_T[start : start + item.length]
            start += item.length


def sum_losses(row: Row, logprobs_P: torch.Tensor, tallies: Mapping[str, Tally]) -> torch.Tensor:
    total = logprobs_P.new_zeros(())
    for part in row.parts:
        tally, where = tallies[part.where.run], find_range(part, row.scored)
        loss = compute_loss(
            tally.request.loss_fn,
            logprobs_P[where.start : where.stop],
            gather_inputs(part, tally.request, row.scored[where.start : where.stop], logprobs_P),
            tally.request.config,
        )
        tally.loss += loss.item()
        tally.num_scored += where.stop - where.start
        total = total + loss
    return total


def gather_inputs(
    part: Part, request: ForwardBackward, indices: NDArray[np.int64], like: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The loss inputs of a part's scored positions, on the device."""
    loss = LOSS_INPUTS[request.loss_fn]
    names = [*loss.required, *find_optional(part, request)]
    gathered = {}
    for name in names:
        values_T = np.concatenate([read_optional(item.datum, name, request) for item in part.items])
        gathered[name] = torch.from_numpy(values_T[indices - part.where.start]).to(like.device)
    return gathered


def find_optional(part: Part, request: ForwardBackward) -> list[str]:
    """Weights always; bounds of the ratio only where some datum of the part brings its own."""
    return [
        name
        for name in LOSS_INPUTS[request.loss_fn].optional
        if name == "weights" or any(name in item.datum.inputs for item in part.items)
    ]


def read_optional(datum: Datum, name: str, request: ForwardBackward) -> FloatArray:
    """A bound that this datum does not bring, though its neighbour does, is the config's."""
    defaults = LOSS_INPUTS[request.loss_fn].config
    if name in datum.inputs or name not in defaults:
        return read_input(datum, name)
    return np.full(len(datum.tokens), request.config.get(name, defaults[name]), np.float32)
