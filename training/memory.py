"""How many bytes a run takes at its peak, said before it begins, from a config and a spec alone.

The sizes are those of the engine's own tensors: what a layer keeps for the backward of each token
(gated.py and attention.py say which), a chunk of logits (logprobs.py), and a run's flat buffers
(lora.py, optim.py). What a base model is read with, and Python itself, are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from training.shapes import LAYER_PARTS, ModelShape
from training.types import LoraSpec, Optimizer

DeviceKind = Literal["cpu", "cuda"]
FLOAT = 4  # bytes of float32
CHUNK_BYTES = 32 << 20  # of float32 logits, or rows of the head, that exist at one time
MOMENTS: Mapping[Optimizer, int] = {"adamw": 2, "dimuon": 1}
NAMES = {
    "weights": "base model",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logprobs": "log-probabilities",
    "workspace": "workspace",
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

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def run_bytes(self) -> int:
        """What the run takes between its steps, the base model aside."""
        return self.adapter + self.gradients + self.optimizer

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
        return sum(
            spec.rank * (rows + columns) * count * (shape.layers if part in LAYER_PARTS else 1)
            for part, rows, columns, count in shape.list_linears()
            if wanted[part]
        )

    @property
    def token_bytes(self) -> int:
        """What every token of a pass keeps for the backward, all layers together."""
        shape = self.shape
        layer = self._count_layer()
        kept = (shape.layers * shape.hidden * self.width + layer) if self.is_checkpointed else 0
        ends = (2 * FLOAT + 2 * self.width) * shape.hidden
        return (kept or shape.layers * layer) + ends

    def _count_layer(self) -> int:
        shape, spec, width = self.shape, self.spec, self.width
        norms = FLOAT * shape.num_norms * shape.hidden
        if shape.has_head_norms:
            norms += FLOAT * (shape.query + shape.key)
        attention = 2 * width * (shape.query + shape.key) + FLOAT * shape.heads
        rows = lows = 0
        if spec.train_attn or spec.is_full:
            rows, lows = rows + shape.hidden + shape.query, lows + 4 * spec.rank
        if spec.train_mlp or spec.is_full:
            rows, lows = rows + shape.hidden, lows + 3 * spec.rank
        return norms + attention + width * (shape.kept_of_mlp * shape.mlp + rows + lows)

    def predict(self, num_tokens: int) -> Footprint:
        """Of a step whose largest pass has so many tokens."""
        size = FLOAT * self.num_trained
        logprobs = self._count_logprobs(num_tokens)
        backward = num_tokens * self.width * (4 * self.shape.mlp + 2 * self.shape.hidden)
        activations = num_tokens * self.token_bytes
        update = 2 * size if self.optimizer == "adamw" else size
        return Footprint(
            weights=self.shape.num_parameters * self.width,
            adapter=size,
            gradients=size,
            optimizer=MOMENTS[self.optimizer] * size,
            activations=activations,
            logprobs=logprobs,
            workspace=max(0, backward - logprobs, update - activations - logprobs),
        )

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
