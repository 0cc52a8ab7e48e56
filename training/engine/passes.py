"""One pass over one packed row: hidden states, log-probabilities, losses, and whose they are.

Shapes: T tokens of the row as they are laid, U positions of the items as they are told (a shared
token is told by every item that has it), P of those projected on the vocabulary, K targets of each
position, H hidden size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from training.engine.adapters import Adapters
from training.engine.logprobs import compute_logprobs
from training.engine.lora import Slice
from training.engine.losses import compute_loss, measure_policy
from training.engine.packing import Item, Layout, Part, lay_out
from training.engine.routes import following
from training.engine.tally import Tally, count_slopes, make_rows, read_input
from training.engine.vectors import pull_vectors
from training.requests import LOGPROBS, LOSS_INPUTS, find_scored, read_temperature
from training.types import Datum, FloatArray, ForwardBackward, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked of a pack. `scored`: has a gradient; `wanted`: only to be told."""

    targets: IntArray  # (U, K)
    scored: IntArray  # (P,) indices into U
    wanted: IntArray  # (P,)
    temperatures: FloatArray  # (U,)


def collect_questions(pack: Sequence[Item], requests: Mapping[str, ForwardBackward]) -> Questions:
    scored_U = np.concatenate(
        [find_scored(item.datum, requests[item.run].loss_fn).any(axis=1) for item in pack]
    )
    silent_U = np.concatenate(
        [
            np.full(item.length, requests[item.run].config.get(LOGPROBS) == "weighted")
            for item in pack
        ]
    )
    return Questions(
        targets=np.concatenate([make_rows(item.datum.inputs["target_tokens"]) for item in pack]),
        scored=np.flatnonzero(scored_U),
        wanted=np.flatnonzero(~scored_U & ~silent_U),
        temperatures=np.concatenate(
            [
                np.full(item.length, read_temperature(requests[item.run]), np.float32)
                for item in pack
            ]
        ),
    )


def run_pass(
    model: PreTrainedModel,
    adapters: Adapters,
    pack: Sequence[Item],
    tallies: Mapping[str, Tally],
) -> tuple[torch.Tensor, int]:
    """Adds to the tallies; returns the losses' sum, to be differentiated, and the row's length."""
    layout = lay_out(pack)
    with adapters.serve([part.laid for part in layout.parts]):
        hidden_TH = read_routed(model, layout, adapters, tallies)
    if not pack[0].datum.num_targets:
        return pull_vectors(layout, hidden_TH, tallies, adapters.projections), len(layout.tokens)
    asked = collect_questions(pack, {run: tally.request for run, tally in tallies.items()})
    logprobs_PK = project(adapters, layout, hidden_TH, asked, asked.scored)
    with torch.no_grad():
        others_PK = project(adapters, layout, hidden_TH, asked, asked.wanted)
    told_UK = np.zeros(asked.targets.shape, np.float32)
    told_UK[asked.scored] = logprobs_PK.detach().cpu().numpy()
    told_UK[asked.wanted] = others_PK.cpu().numpy()
    store_logprobs(layout, told_UK, tallies)
    if logprobs_PK.requires_grad:
        count = partial(count_slopes, layout, asked.scored, tallies)
        logprobs_PK.register_hook(count)  # type: ignore[no-untyped-call]
    return sum_losses(layout, logprobs_PK, asked.scored, tallies), len(layout.tokens)


def read_routed(
    model: PreTrainedModel, layout: Layout, adapters: Adapters, tallies: Mapping[str, Tally]
) -> torch.Tensor:
    """Hidden states, and which experts they came through."""
    routing = adapters.routing
    if routing is None:
        return read_hidden(model, layout, adapters.device)
    wanted = None if layout.routes is None else torch.from_numpy(layout.routes).to(adapters.device)
    with following(routing, wanted), routing.record() as record:
        hidden_TH = read_hidden(model, layout, adapters.device)
    asking = [part for part in layout.parts if tallies[part.told.run].request.with_routes]
    if asking:
        store_routes(asking, record.read()[layout.places], tallies)
    return hidden_TH


def store_routes(parts: Sequence[Part], routes_ULK: IntArray, tallies: Mapping[str, Tally]) -> None:
    for part in parts:
        start = part.told.start
        for item in part.items:
            tallies[item.run].routes[item.index] = routes_ULK[start : start + item.length]
            start += item.length


def read_hidden(model: PreTrainedModel, layout: Layout, device: torch.device) -> torch.Tensor:
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    output = decoder(
        input_ids=torch.from_numpy(layout.tokens)[None].to(device),
        position_ids=torch.from_numpy(layout.positions)[None].to(device),
        segments=layout.segments,
        use_cache=False,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def project(
    adapters: Adapters,
    layout: Layout,
    hidden_TH: torch.Tensor,
    asked: Questions,
    indices_P: IntArray,
) -> torch.Tensor:
    """Log-probabilities of the targets at some of the told positions."""
    device = hidden_TH.device
    rows_P = torch.from_numpy(layout.places[indices_P]).to(device)
    targets_PK = torch.from_numpy(asked.targets[indices_P]).to(device)
    active = adapters.head.find_active([find_range(part, indices_P) for part in layout.parts])
    temperatures_P = asked.temperatures[indices_P]
    rule = adapters.logit_rule
    if (temperatures_P != 1).any():
        rule = rule.temper(torch.from_numpy(temperatures_P).to(device))
    return compute_logprobs(hidden_TH[rows_P], targets_PK, adapters.head, active, rule)


def find_range(part: Part, indices_P: IntArray) -> Slice:
    """Where among the chosen positions those of a part lie."""
    start, stop = np.searchsorted(indices_P, [part.told.start, part.told.stop])
    return Slice(part.told.run, int(start), int(stop))


def store_logprobs(layout: Layout, told_UK: FloatArray, tallies: Mapping[str, Tally]) -> None:
    for part in layout.parts:
        start = part.told.start
        for item in part.items:
            logprobs = tallies[item.run].logprobs[item.index]
            logprobs[:] = told_UK[start : start + item.length].reshape(logprobs.shape)
            start += item.length


def sum_losses(
    layout: Layout, logprobs_PK: torch.Tensor, scored_P: IntArray, tallies: Mapping[str, Tally]
) -> torch.Tensor:
    total = logprobs_PK.new_zeros(())
    for part in layout.parts:
        tally = tallies[part.told.run]
        if tally.request.custom is not None:
            where = find_range(part, scored_P)
            total = total + pull_slopes(part, tally, logprobs_PK[where.start : where.stop])
        else:
            for piece in cut_part(part, tally.request):
                total = total + sum_piece(piece, tally, logprobs_PK, scored_P)
        tally.num_scored += sum(
            int(find_scored(item.datum, tally.request.loss_fn).sum()) for item in part.items
        )
    return total


def cut_part(part: Part, request: ForwardBackward) -> Iterable[Part]:
    """As much as the loss looks at together."""
    return part.split() if LOSS_INPUTS[request.loss_fn].is_by_datum else [part]


def sum_piece(
    piece: Part, tally: Tally, logprobs_PK: torch.Tensor, scored_P: IntArray
) -> torch.Tensor:
    where = find_range(piece, scored_P)
    own = slice(where.start, where.stop)
    loss_fn, config = tally.request.loss_fn, tally.request.config
    logprobs_P = narrow(logprobs_PK[own])
    inputs = gather_inputs(piece, tally.request, scored_P[own], logprobs_PK)
    loss = compute_loss(loss_fn, logprobs_P, inputs, config)
    tally.loss += loss.item()
    if "advantages" in inputs:
        for key, value in measure_policy(loss_fn, logprobs_P, inputs, config).items():
            tally.policy[key] = tally.policy.get(key, 0.0) + value
    return loss


def narrow(values_PK: torch.Tensor) -> torch.Tensor:
    """As a loss sees it: one target a position is no dimension."""
    return values_PK.squeeze(1) if values_PK.shape[1] == 1 else values_PK


def pull_slopes(part: Part, tally: Tally, logprobs_PK: torch.Tensor) -> torch.Tensor:
    """Not a custom loss's value, but what has its gradient: every target of it is scored."""
    slopes_PK = np.concatenate([make_rows(tally.judge(item)) for item in part.items])
    return (logprobs_PK * torch.from_numpy(slopes_PK).to(logprobs_PK.device)).sum()


def gather_inputs(
    part: Part, request: ForwardBackward, indices_P: IntArray, like: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The loss inputs of a part's scored positions, on the device."""
    loss = LOSS_INPUTS[request.loss_fn]
    names = [*loss.required, *find_optional(part, request)]
    gathered = {}
    for name in names:
        values_UK = np.concatenate(
            [make_rows(read_optional(item.datum, name, request)) for item in part.items]
        )
        chosen_PK = torch.from_numpy(values_UK[indices_P - part.told.start]).to(like.device)
        gathered[name] = narrow(chosen_PK)
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
