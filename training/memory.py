"""How many bytes a run takes at its peak, said before it begins, from a config and a spec alone.

The sizes are those of the engine's own tensors: what a layer keeps for the backward of each token
(gated.py and attention.py say which), a chunk of logits (logprobs.py), and a run's flat buffers
(lora.py, optim.py). What a base model is read with, and Python itself, are not counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

from training.errors import InvalidInput
from training.shapes import LAYER_PARTS, ModelShape
from training.types import Datum, LoraSpec, Optimizer

DeviceKind = Literal["cpu", "cuda"]
FLOAT = 4  # bytes of float32
INDEX = 8  # bytes of a place in a tensor
CHUNK_BYTES = 32 << 20  # of float32 logits, or rows of the head, that exist at one time
# What glibc's allocator keeps of what comes and goes: measured 0.25 to 0.6, most for one long row.
# Mapping every piece by itself would leave none of it, at the price of page faults.
SLACK = 0.42
SCORE_BYTES = 16 << 20  # of float32 scores that exist at one time where they are capped
SCORE_ROWS = 256  # queries of one call of attention
FEWEST_TOKENS = 256  # of a pass: with fewer, products with the weights are slow
UPDATE_BYTES = 64 << 20  # that an optimizer's step goes through at a time
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
MOMENTS: Mapping[Optimizer, int] = {"adamw": 2, "dimuon": 1}
NAMES = {
    "weights": "base model",
    "adapter": "trained weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logprobs": "log-probabilities",
    "workspace": "workspace",
    "slack": "gaps of the allocator",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes at the peak of a step, by what takes them."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logprobs: int
    workspace: int
    slack: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def parts(self) -> list[tuple[str, int]]:
        """In words, the largest first; nothing that takes nothing."""
        parts = [(name, getattr(self, key)) for key, name in NAMES.items() if getattr(self, key)]
        return sorted(parts, key=lambda part: -part[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What decides about a run's bytes. `width`: bytes of a number that the model computes in."""

    shape: ModelShape
    spec: LoraSpec
    device: DeviceKind = "cpu"
    optimizer: Optimizer = "adamw"
    is_checkpointed: bool = False  # activations of one layer at a time are computed again
    num_pieces: int = 1  # that ranks have cut every layer into; the bytes are one rank's

    @property
    def width(self) -> int:
        return FLOAT if self.device == "cpu" else 2

    @property
    def num_trained(self) -> int:
        """Numbers that the run learns."""
        if self.spec.is_full:
            return self.shape.num_parameters
        shape, spec = self.shape, self.spec
        wanted = {
            "embed": spec.train_embed,
            "attn": spec.train_attn,
            "mlp": spec.train_mlp,
            "unembed": spec.train_unembed,
        }
        return spec.projection_head_dim * shape.hidden + sum(
            spec.rank * (rows + columns) * count * (shape.layers if part in LAYER_PARTS else 1)
            for part, rows, columns, count in shape.list_linears()
            if wanted[part]
        )

    @property
    def token_bytes(self) -> int:
        """What every token of a pass keeps for the backward, all layers together."""
        shape = self.shape
        ends = (2 * FLOAT + 2 * self.width) * shape.hidden
        layer = self.width * shape.hidden if self.is_checkpointed else self._count_layer()
        return shape.layers * layer + ends

    def _count_layer(self) -> int:
        shape, spec, width = self.shape, self.spec, self.width
        norms = FLOAT * shape.num_norms * shape.hidden
        if spec.is_full:
            norms *= 2  # what their own weights are multiplied with
        if shape.has_head_norms:
            norms += FLOAT * (shape.query + shape.key)
        attention = 2 * width * (shape.query + shape.key) + FLOAT * shape.heads
        if shape.has_caps:  # keys and values are repeated for every head
            attention += 2 * width * (shape.query - shape.key)
        rows = lows = 0
        if spec.train_attn or spec.is_full:
            rows, lows = rows + shape.hidden + shape.query, lows + 4 * spec.rank
        if spec.train_mlp or spec.is_full:
            rows, lows = rows + shape.hidden, lows + 3 * spec.rank * shape.experts_a_token
        kept = width * (shape.kept_of_mlp * shape.mlp + rows + lows)
        return norms + attention + kept + self._count_routes()

    def _count_routes(self) -> int:
        """Of a token in a layer with experts: the router's softmax, and places as they are sorted
        (places.py)."""
        shape = self.shape
        if shape.num_experts == 1:
            return 0
        return FLOAT * shape.num_experts + shape.experts_a_token * (4 * INDEX + 3 * FLOAT)

    def predict(self, num_tokens: int) -> Footprint:
        """Of a step whose largest pass has so many tokens."""
        size = self._count_trained()
        activations, logprobs = num_tokens * self.token_bytes, self._count_logprobs(num_tokens)
        workspace = self._count_workspace(num_tokens, activations + logprobs)
        slack = SLACK if self.device == "cpu" else 0.0
        return Footprint(
            weights=0 if self.is_shared else self._count_weights(),
            adapter=size,
            gradients=size,
            optimizer=MOMENTS[self.optimizer] * size,
            activations=activations,
            logprobs=logprobs,
            workspace=workspace,
            slack=int(slack * (activations + logprobs + workspace)),
        )

    @property
    def is_shared(self) -> bool:
        """A model that computes in float32 sees the trained weights themselves."""
        return self.spec.is_full and self.width == FLOAT and self.num_pieces == 1

    def _count_trained(self) -> int:
        """Adapters are whole on every rank."""
        return FLOAT * self.num_trained // (self.num_pieces if self.spec.is_full else 1)

    def _count_weights(self) -> int:
        """A rank's pieces; and whole, while they are used, the model's two ends and two layers."""
        total = self.shape.num_parameters * self.width
        if self.num_pieces == 1:
            return total
        return total // self.num_pieces + self._count_ends() + 2 * self._count_layer_weights()

    def _count_ends(self) -> int:
        return self.width * self.shape.vocabulary * self.shape.hidden * (2 - self.shape.is_tied)

    def _count_layer_weights(self) -> int:
        total = self.shape.num_parameters * self.width
        return (total - self._count_ends()) // self.shape.layers

    def _count_workspace(self, num_tokens: int, known: int) -> int:
        """Beside what a pass is known to take: gradients on their way, or the optimizer's."""
        shape, size = self.shape, self._count_trained()
        wide, narrow = (3, 1) if shape.num_experts == 1 else (4, 3 * shape.experts_a_token)
        backward = num_tokens * self.width * (wide * shape.mlp + narrow * shape.hidden)
        if self.is_checkpointed:
            backward += num_tokens * self._count_layer()
        backward -= self._count_logprobs(num_tokens)
        late = max(self._count_embedding(), 2 * min(size, UPDATE_BYTES)) - known
        return max(0, backward, late, self._count_scores(num_tokens))

    def _count_embedding(self) -> int:
        """Its gradient, the last of a pass where all weights are trained."""
        if not self.spec.is_full:
            return 0
        size = self.shape.vocabulary * self.shape.hidden
        if self.num_pieces == 1:
            return self.width * size
        # The head's sums beside it, and a layer's gradients on their way.
        return (self.width + FLOAT) * size + self._count_layer_weights()

    def _count_scores(self, num_tokens: int) -> int:
        """Of one call of attention where they are capped, with a copy on the way."""
        if not self.shape.has_caps:
            return 0
        return 2 * min(SCORE_BYTES, FLOAT * self.shape.heads * num_tokens * SCORE_ROWS)

    def _count_logprobs(self, num_tokens: int) -> int:
        """A chunk as the head gives it and in float32; with a trained head its softmax beside."""
        chunk = min(CHUNK_BYTES, FLOAT * num_tokens * self.shape.vocabulary)
        chunk = max(chunk, FLOAT * self.shape.vocabulary)
        copies = 1.0 if self.width == FLOAT else 1.5
        return int(chunk * (copies + (1 if self.spec.train_unembed else 0)))

    def count_tokens(self, num_bytes: int) -> int:
        """The most tokens of one pass that so many bytes hold; 0 where not even one is held."""
        least, most = 0, 1 << 24
        while least < most:
            middle = (least + most + 1) // 2
            if self.predict(middle).total <= num_bytes:
                least = middle
            else:
                most = middle - 1
        return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a device offers the runs of one base model. Of what else is on it nothing is said: what
    a run may do, and in how many passes, must not depend on its neighbours."""

    shape: ModelShape
    num_bytes: int
    device: DeviceKind = "cpu"
    is_checkpointed: bool = False
    num_pieces: int = 1  # as Memory has it; the room is one rank's

    def plan(self, spec: LoraSpec) -> Memory:
        return Memory(
            shape=self.shape,
            spec=spec,
            device=self.device,
            is_checkpointed=self.is_checkpointed,
            num_pieces=self.num_pieces,
        )

    def check_run(self, spec: LoraSpec) -> None:
        """InvalidInput where a run of this spec has no room for one token."""
        if count_tokens(self, spec):
            return
        needed = self.plan(spec).predict(1)
        largest, size = needed.parts[0]
        less = "train on a smaller base model" if spec.is_full else "choose a smaller rank"
        raise InvalidInput(
            f"this run takes {say_bytes(needed.total)} with a single token ({largest}:"
            f" {say_bytes(size)}), and this worker has {say_bytes(self.num_bytes)} for it: {less},"
            " or a worker with more memory"
        )

    def check_data(self, spec: LoraSpec, data: Sequence[Datum]) -> None:
        """InvalidInput with the first datum that is too long for a pass of its own."""
        most = count_tokens(self, spec)
        for index, datum in enumerate(data):
            if len(datum.tokens) > most:
                raise InvalidInput(self.describe_excess(spec, f"datum {index}", len(datum.tokens)))

    def describe_excess(self, spec: LoraSpec, what: str, num_tokens: int, cure: str = "") -> str:
        most = round_down(count_tokens(self, spec))
        cure = cure.format(most=most) or "send shorter ones"
        other = "" if spec.is_full else ", or train fewer parts or a smaller rank"
        return (
            f"{what} has {num_tokens:,} tokens: this worker's {say_bytes(self.num_bytes)} hold"
            f" {most:,} of them for this run; {cure}{other}"
        )

    def choose_budget(self, spec: LoraSpec, most: int) -> int:
        """Tokens of a pass: a power of two that leaves half of what is left to runs and neighbours.
        The same on every device of this size, so a replay has the same passes."""
        standing = self.plan(spec).predict(0).total
        half = replace(self, num_bytes=standing + max(0, self.num_bytes - standing) // 2)
        fitting = max(FEWEST_TOKENS, count_tokens(half, spec))
        return min(most, int(2 ** math.floor(math.log2(fitting))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model is loaded so that its runs have room."""

    token_budget: int
    room: Room

    @property
    def recompute(self) -> bool:
        return self.room.is_checkpointed


def fit_model(
    shape: ModelShape,
    device: DeviceKind,
    num_bytes: int,
    most: int,
    *,
    is_full: bool,
    num_pieces: int = 1,
) -> Fit:
    """`most` tokens go into a pass where they have room. A run of all weights makes activations
    twice where they have none otherwise."""
    room = Room(shape=shape, num_bytes=num_bytes, device=device, num_pieces=num_pieces)
    usual = LoraSpec(rank=0 if is_full else 64)
    budget = room.choose_budget(usual, most)
    if is_full and budget < most:
        room = replace(room, is_checkpointed=True)
        budget = room.choose_budget(usual, most)
    return Fit(token_budget=budget, room=room)


@lru_cache(maxsize=1024)
def count_tokens(room: Room, spec: LoraSpec) -> int:
    """The most tokens of one datum; 0 where the run itself has no room."""
    return room.plan(spec).count_tokens(room.num_bytes)


def say_bytes(num_bytes: int) -> str:
    """As pages say it."""
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def round_down(count: int) -> int:
    """Two digits: an estimate is not more exact."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return count - count % unit
