"""Which layers of a model a run's adapter covers, and the flat buffers that hold its weights."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from training.engine.embedding import LoraEmbedding
from training.engine.experts import NAMES, LoraExperts, name_joined, name_stacks
from training.engine.logits import read_rule
from training.engine.lora import Adapted, Block, LoraLinear, Pair, Route, Slice, cut_stack
from training.engine.projection import HEAD, MOST_ROWS, Projection, without_head
from training.engine.routes import Routing
from training.engine.steps import Counts
from training.errors import InvalidInput
from training.types import MAX_RANK, LoraSpec

Part = Literal["embed", "attn", "mlp", "unembed"]


class Adapter:
    """One run's trainable weights: flat float32 buffers, seen layer by layer as pairs."""

    def __init__(
        self, spec: LoraSpec, layers: Mapping[str, Adapted], device: torch.device, width: int
    ) -> None:
        self.spec = spec
        self.blocks = {name: layer.name_blocks(name, spec.rank) for name, layer in layers.items()}
        # The last of the buffers, so that the same seed begins the rest alike.
        self.extra = [Block(names=(HEAD,), shape=(spec.projection_head_dim, width))]
        self.extra = self.extra if spec.projection_head_dim else []
        total = sum(block.size for block in self._list_blocks())
        self.values = torch.zeros(total, device=device)
        self.gradients = torch.zeros(total, device=device)
        self.has_gradients = False
        self.counts = Counts()
        self.tensors = self.view(self.values)
        self.projection = Projection.find(self.tensors, self.view(self.gradients))
        self.pairs = self._make_pairs()
        self._initialise(layers)

    @property
    def num_parameters(self) -> int:
        return self.values.numel()

    def view(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """A buffer as flat as the weights, by PEFT's tensor names."""
        blocks = self._list_blocks()
        return {
            name: matrix
            for block, piece in zip(blocks, self._cut(flat), strict=True)
            for name, matrix in zip(block.names, piece, strict=True)
        }

    def join_experts(self) -> dict[str, torch.Tensor]:
        """The weights as Tinker's downloads hold them, which its cookbook makes PEFT's files of."""
        tensors = without_head(self.tensors)
        for name, (a, b) in self.blocks.items():
            joined = name_joined(name) if a.is_stack else None
            if joined is not None:
                for each in (*a.names, *b.names):
                    del tensors[each]
                tensors |= zip(joined, (self.pairs[name].a, self.pairs[name].b), strict=True)
        return tensors

    def _list_blocks(self) -> list[Block]:
        return [block for pair in self.blocks.values() for block in pair] + self.extra

    def _cut(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Every block's matrices, one above the other."""
        blocks = self._list_blocks()
        pieces = torch.split_with_sizes(flat, [block.size for block in blocks])
        return [
            piece.view(len(block.names), *block.shape)
            for block, piece in zip(blocks, pieces, strict=True)
        ]

    def _make_pairs(self) -> dict[str, Pair]:
        values, gradients = (
            iter(
                piece if block.is_stack else piece[0]
                for block, piece in zip(self._list_blocks(), self._cut(flat), strict=True)
            )
            for flat in (self.values, self.gradients)
        )
        pairs = {
            name: Pair(
                a=next(values).requires_grad_(),
                b=next(values).requires_grad_(),
                a_grad=next(gradients),
                b_grad=next(gradients),
                scale=self.spec.alpha / self.spec.rank,
            )
            for name in self.blocks
        }
        return {name: cut_stack(pair) if pair.a.ndim == 3 else pair for name, pair in pairs.items()}

    def _initialise(self, layers: Mapping[str, Adapted]) -> None:
        """From numbers drawn on the CPU: the same seed gives the same adapter on every device."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        for name, layer in layers.items():
            layer.initialise(self.pairs[name], generator)
        if self.projection is not None:
            self.projection.initialise(self.spec.seed)

    def drop_gradients(self) -> None:
        self.gradients.zero_()
        self.has_gradients = False
        self.counts = Counts()


class Adapters:
    """All runs' adapters on one model. Making it replaces the model's layers, once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.route = Route()
        self.routing = find_routing(model)
        self.layers = replace_layers(model, self.route)
        self.head = next(
            layer
            for part, layer in self.layers.values()
            if part == "unembed" and isinstance(layer, LoraLinear)
        )
        self.logit_rule = read_rule(model.config)
        self.device = self.head.weight.device
        self.by_run: dict[str, Adapter] = {}
        self.projections: dict[str, Projection] = {}  # of the runs that have one

    def select_layers(self, spec: LoraSpec) -> dict[str, Adapted]:
        wanted = {
            "embed": spec.train_embed,
            "attn": spec.train_attn,
            "mlp": spec.train_mlp,
            "unembed": spec.train_unembed,
        }
        return {name: layer for name, (part, layer) in self.layers.items() if wanted[part]}

    def add(self, run: str, spec: LoraSpec) -> Adapter:
        """A fresh adapter; one that the run had before is replaced."""
        check_spec(spec)
        self.drop(run)
        layers = self.select_layers(spec)
        adapter = Adapter(spec, layers, self.device, self.head.weight.shape[1])
        if adapter.projection is not None:
            self.projections[run] = adapter.projection
        for name, layer in layers.items():
            layer.pairs[run] = adapter.pairs[name]
        self.by_run[run] = adapter
        return adapter

    def drop(self, run: str) -> None:
        self.by_run.pop(run, None)
        self.projections.pop(run, None)
        for _, layer in self.layers.values():
            layer.pairs.pop(run, None)

    def name_modules(self, run: str) -> list[str]:
        """What a run has weights for, as PEFT's target_modules say it: by the last name alone,
        where it means no layer besides those."""
        covered = self.by_run[run].blocks
        others = {shorten(name) for name in self.layers if name not in covered}
        return sorted({name if shorten(name) in others else shorten(name) for name in covered})

    @contextmanager
    def serve(self, slices: Sequence[Slice]) -> Iterator[None]:
        """Inside, row ranges of every layer's flattened input go through their run's adapter.

        Rows that no slice names are the base model's. The head sees other rows than the layers
        where only some positions are projected: open a second `serve` around its call.
        """
        before, self.route.slices = self.route.slices, slices
        try:
            yield
        finally:
            self.route.slices = before


def shorten(name: str) -> str:
    return name.rpartition(".")[2]


def check_head(spec: LoraSpec) -> None:
    if not 0 <= spec.projection_head_dim <= MOST_ROWS:
        raise InvalidInput(
            f"projection_head_dim is {spec.projection_head_dim}: choose one up to {MOST_ROWS}, or 0"
        )


def check_spec(spec: LoraSpec) -> None:
    check_head(spec)
    if not 1 <= spec.rank <= MAX_RANK:
        raise InvalidInput(f"rank is {spec.rank}: choose one from 1 to {MAX_RANK}")
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise InvalidInput(f"alpha is {spec.alpha}: choose a positive number")
    if not spec.has_parts:
        raise InvalidInput(
            "nothing to train: set at least one of train_attn, train_mlp, train_unembed and "
            "train_embed"
        )


def find_routing(model: PreTrainedModel) -> Routing | None:
    """None: the model is dense."""
    routers = [
        model.get_submodule(f"{name.rpartition('.')[0]}.gate") for name, _ in list_experts(model)
    ]
    return Routing(routers) if routers else None


def list_experts(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    return [
        (name, module) for name, module in model.named_modules() if type(module).__name__ in NAMES
    ]


def replace_layers(model: PreTrainedModel, route: Route) -> dict[str, tuple[Part, Adapted]]:
    """Put a layer with adapters in the place of every one that a run may train."""
    found: dict[str, tuple[Part, Adapted]] = {}
    embedding, parts = model.get_input_embeddings(), find_linears(model)
    for name, module in list(model.named_modules()):
        if module is embedding:
            found[name] = ("embed", LoraEmbedding(embedding, route))
        elif name in parts and isinstance(module, nn.Linear):
            found[name] = (parts[name], LoraLinear(module, route))
    for name, (_, layer) in found.items():
        model.set_submodule(name, layer)
    for name, module in list_experts(model):
        experts = LoraExperts(module, route)
        model.set_submodule(name, experts)
        stacks = zip(name_stacks(name, module), experts.stacks, strict=True)
        found |= {stack_name: ("mlp", stack) for stack_name, stack in stacks}
    if {part for part, _ in found.values()} != {"embed", "attn", "mlp", "unembed"}:
        raise InvalidInput(
            f"{type(model).__name__} has no linear layers for attention, for an MLP and for a "
            "head: it cannot be trained"
        )
    return found


def find_linears(model: PreTrainedModel) -> dict[str, Part]:
    """Every linear layer of a decoder layer by what it belongs to there, and the head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = re.compile(rf"{re.escape(find_layers(model))}\.\d+\.([^.]*)")
    parts: dict[str, Part] = {}
    for name, module in model.named_modules():
        place = inside.match(name)
        if not isinstance(module, nn.Linear):
            continue
        if module is head:
            parts[name] = "unembed"
        elif place is not None:
            parts[name] = "attn" if "att" in place[1] else "mlp"
    return parts


def find_layers(model: PreTrainedModel) -> str:
    """The name of the list of decoder layers: the first that has as many as the config says."""
    count = model.config.num_hidden_layers
    return next(
        (
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ),
        "layers",
    )
