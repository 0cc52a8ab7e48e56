"""Datums as vectors: their last hidden states pooled, and losses that look at all of a request's.

Such a loss takes the model twice: the first time only for the vectors, of which it tells each one's
gradient, and then with those. So a request of any size goes through in passes like others do
(Gao et al. 2021, arXiv 2101.06983).

Shapes: T tokens as they are laid, U positions as they are told, N datums, H hidden size, B queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from training.engine.packing import Item, Layout
from training.engine.projection import Projection
from training.engine.tally import Tally, count_slopes
from training.types import Datum, FloatArray, ForwardBackward, ForwardBackwardOutput
from training.vectors import (
    CONTRASTIVE,
    COSINES,
    COUPLED,
    GRADIENTS,
    OUTPUT,
    POOLING,
    PROJECTION,
)

GIVEN = GRADIENTS["embedding"]


def pull_vectors(
    layout: Layout,
    hidden_TH: torch.Tensor,
    tallies: Mapping[str, Tally],
    heads: Mapping[str, Projection],
) -> torch.Tensor:
    """Notes the vectors of a pack; returns what has the gradients that were given for them."""
    rows_U = torch.from_numpy(layout.places).to(hidden_TH.device)
    hidden_UH = hidden_TH[rows_U].float()
    if hidden_UH.requires_grad:
        count = partial(count_slopes, layout, np.arange(len(layout.places)), tallies)
        hidden_UH.register_hook(count)  # type: ignore[no-untyped-call]
    items = [item for part in layout.parts for item in part.items]
    pieces = torch.split_with_sizes(hidden_UH, [item.length for item in items])
    vectors = [
        read_vector(piece, tallies[item.run], heads.get(item.run))
        for piece, item in zip(pieces, items, strict=True)
    ]
    given = [read_given(item, vector) for item, vector in zip(items, vectors, strict=True)]
    flat = torch.cat([vector.reshape(-1) for vector in vectors])
    pulls = flat * torch.from_numpy(np.concatenate(given)).to(flat.device)
    sizes = [vector.numel() for vector in vectors]
    sums = torch.stack([piece.sum() for piece in torch.split_with_sizes(pulls, sizes)])
    told = np.split(flat.detach().cpu().numpy(), np.cumsum(sizes)[:-1])
    for item, vector, values, pull in zip(items, vectors, told, sums.tolist(), strict=True):
        tally = tallies[item.run]
        tally.vectors[item.index] = values.reshape(vector.shape)
        tally.num_scored += 1
        tally.loss += pull
    return sums.sum()


def read_vector(piece_NH: torch.Tensor, tally: Tally, head: Projection | None) -> torch.Tensor:
    """Of one datum, N tokens: one vector, or the projection of each."""
    if tally.request.output == PROJECTION:
        assert head is not None
        return head.project(piece_NH)
    if tally.request.config.get(POOLING) == "last":
        return piece_NH[-1]
    return piece_NH.mean(dim=0)


def read_given(item: Item, vector: torch.Tensor) -> FloatArray:
    """Flat; zeros where no gradient was sent."""
    given = next(iter(item.datum.inputs.values()), None)
    if given is None:
        return np.zeros(vector.numel(), np.float32)
    return given.astype(np.float32, copy=False).reshape(-1)


def ask_vectors(request: ForwardBackward) -> ForwardBackward:
    """What the passes are asked first. Whatever else a datum brings has no part in it."""
    if request.output not in COUPLED:
        keep = () if request.forward_only else (GRADIENTS[request.output],)
        return replace(request, data=[strip(datum, keep) for datum in request.data])
    config = {OUTPUT: "embedding", POOLING: request.config.get(POOLING, "mean")}
    data = [strip(datum) for datum in request.data]
    return replace(request, data=data, config=config, forward_only=True)


def strip(datum: Datum, keep: Sequence[str] = ()) -> Datum:
    return replace(datum, inputs={name: datum.inputs[name] for name in keep})


@dataclass(slots=True, kw_only=True)
class Coupled:
    """A request whose datums are compared with each other, on its way."""

    request: ForwardBackward
    told: ForwardBackwardOutput | None = None  # once all vectors are known

    @classmethod
    def of(cls, request: ForwardBackward) -> "Coupled | None":
        return cls(request=request) if request.output in COUPLED else None

    def advance(self, tally: Tally) -> ForwardBackward | None:
        """After the first time: what the passes are asked the second time, if there is one."""
        if self.told is not None:
            return None
        output = tally.finish()
        assert output.vectors is not None
        vectors_NH = torch.from_numpy(np.stack(output.vectors)).double()
        vectors_NH.requires_grad_(not self.request.forward_only)
        with torch.set_grad_enabled(not self.request.forward_only):
            loss, rows = compare(vectors_NH, self.request)
        metrics = {**output.metrics, "loss:sum": loss.item()}
        if self.request.output == CONTRASTIVE:  # clients read it by this name
            metrics["loss"] = loss.item()
        self.told = replace(output, metrics=metrics, vectors=rows)
        if self.request.forward_only:
            return None
        loss.backward()  # type: ignore[no-untyped-call]
        assert vectors_NH.grad is not None
        slopes = vectors_NH.grad.float().numpy()
        data = [
            replace(datum, inputs={GIVEN: slope})
            for datum, slope in zip(tally.request.data, slopes, strict=True)
        ]
        return replace(tally.request, data=data, forward_only=False)


def compare(
    vectors_NH: torch.Tensor, request: ForwardBackward
) -> tuple[torch.Tensor, Sequence[FloatArray]]:
    """The loss of all vectors, and what is told of each."""
    unit_NH = normalize(vectors_NH, dim=1)
    if request.output == CONTRASTIVE:
        return contrast(unit_NH, request), [np.zeros(0, np.float32) for _ in unit_NH]
    cosines_NN = unit_NH @ unit_NH.T
    loss = cosines_NN.new_zeros(())
    if not request.forward_only:
        given = [datum.inputs[GRADIENTS[COSINES]] for datum in request.data]
        loss = (cosines_NN * torch.from_numpy(np.stack(given)).double()).sum()
    return loss, list(cosines_NN.detach().float().numpy())


def contrast(unit_NH: torch.Tensor, request: ForwardBackward) -> torch.Tensor:
    """InfoNCE in both directions, as CLIP has it (arXiv 2103.00020): of each query among the
    documents, which further negatives stand beside, and of each document among the queries. A mean
    over the pairs and over the two directions.
    """
    num_pairs = int(request.config["num_queries"])
    cosines = unit_NH[:num_pairs] @ unit_NH[num_pairs:].T / float(request.config["temperature"])
    own_B = torch.arange(num_pairs)
    forth, back = cross_entropy(cosines, own_B), cross_entropy(cosines[:, :num_pairs].T, own_B)
    return (forth + back) / 2
