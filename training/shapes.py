"""The sizes of a model, told from its config.json alone: what its weights and activations take."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.architectures import read_size
from training.errors import InvalidInput

Part = Literal["embed", "attn", "mlp", "unembed"]
LAYER_PARTS = ("attn", "mlp")

# Tensors as wide as the MLP that a layer keeps for the backward, where engine/gated.py thins out
# nothing. Phi's GELU is written out in steps, and each keeps what it needs.
KEPT_OF_MLP = {"phi3": 4, "phi": 4}
# How many norms a layer has over the hidden size, where it is not two.
NORMS = {"phi": 1, "gemma2": 4, "gemma3": 4, "gemma3_text": 4}
# Families that norm queries and keys, of every head or of all together.
HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2", "olmo3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Widths are numbers of a token: `query` and `key` of all heads of a layer together."""

    layers: int
    hidden: int
    query: int
    key: int
    mlp: int  # of all experts that a token meets
    vocabulary: int
    num_experts: int = 1
    experts_a_token: int = 1
    heads: int = 1
    num_norms: int = 2
    has_head_norms: bool = False
    kept_of_mlp: int = 2
    is_gated: bool = True
    is_fused: bool = False  # one matrix makes queries, keys and values, another both halves
    has_caps: bool = False  # of attention's scores: those exist then
    is_tied: bool = False  # the head is the input embedding's matrix too

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """InvalidInput where a size is missing, or is none."""
        heads, hidden = read_size(config, "num_attention_heads"), read_size(config, "hidden_size")
        head_width = _find(config, "head_dim") or hidden // heads
        num_experts = _find(config, "num_experts") or _find(config, "num_local_experts") or 1
        experts_a_token = _find(config, "num_experts_per_tok") or 1 if num_experts > 1 else 1
        width = _find(config, "moe_intermediate_size") if num_experts > 1 else None
        family = str(config.get("model_type", ""))
        return cls(
            layers=read_size(config, "num_hidden_layers"),
            hidden=hidden,
            query=heads * head_width,
            key=(_find(config, "num_key_value_heads") or heads) * head_width,
            mlp=(width or read_size(config, "intermediate_size")) * experts_a_token,
            vocabulary=read_size(config, "vocab_size"),
            num_experts=num_experts,
            experts_a_token=experts_a_token,
            heads=heads,
            num_norms=NORMS.get(family, 2),
            has_head_norms=family in HEAD_NORMS or bool(config.get("qk_layernorm")),
            kept_of_mlp=KEPT_OF_MLP.get(family, 2),
            is_gated=family != "phi",
            is_fused=family == "phi3",
            has_caps=bool(config.get("attn_logit_softcapping")),
            is_tied=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
        )

    @classmethod
    def read(cls, folder: Path) -> "ModelShape":
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{folder}/config.json cannot be read: {error}") from error
        return cls.from_config(config)

    @property
    def num_parameters(self) -> int:
        """Of all weights. Biases, which are thousandths of them, are not counted."""
        norms = self.layers * self.num_norms * self.hidden + self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        linears = sum(
            rows * columns * count
            for part, rows, columns, count in self.list_linears()
            if part in LAYER_PARTS
        )
        routers = self.layers * self.num_experts * self.hidden if self.num_experts > 1 else 0
        return norms + embeddings + self.layers * linears + routers

    @property
    def active_share(self) -> float:
        """Of all weights, those that a token meets: of experts a few only."""
        experts = sum(
            rows * columns * count
            for part, rows, columns, count in self.list_linears()
            if part == "mlp"
        )
        idle = experts * self.layers * (1 - self.experts_a_token / self.num_experts)
        return 1 - idle / self.num_parameters

    def list_linears(self) -> list[tuple[Part, int, int, int]]:
        """Of one layer of the model, and of its two ends: part, rows, columns, count."""
        expert, num_halves = self.mlp // self.experts_a_token, 1 + self.is_gated
        projections: list[tuple[Part, int, int, int]] = [
            ("attn", self.query, self.hidden, 1),
            ("attn", self.key, self.hidden, 2),
            ("mlp", expert, self.hidden, num_halves * self.num_experts),
        ]
        if self.is_fused:
            projections = [
                ("attn", self.query + 2 * self.key, self.hidden, 1),
                ("mlp", num_halves * expert, self.hidden, 1),
            ]
        return [
            *projections,
            ("attn", self.hidden, self.query, 1),
            ("mlp", self.hidden, expert, self.num_experts),
            ("unembed", self.vocabulary, self.hidden, 1),
            ("embed", self.vocabulary, self.hidden, 1),
        ]


def _find(config: Mapping[str, Any], key: str) -> int | None:
    """A size that not every family has; transformers writes null, or 0, for none."""
    return read_size(config, key) if config.get(key) else None
