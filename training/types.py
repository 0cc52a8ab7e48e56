"""The nouns of training, decoded: datums, adapters, requests, results. No torch, no framework."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.graphs import CustomLoss

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
# The Tinker wire carries no alpha; one constant for all ranks keeps learning rates comparable.
LORA_ALPHA = 32.0
MAX_RANK = 512

CheckpointKind = Literal["training", "sampler"]
StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One sequence. Position i of `inputs` speaks of the token that follows `tokens[i]`."""

    tokens: IntArray  # (N,)
    inputs: Mapping[str, NDArray[Any]]  # target_tokens, weights, advantages ...: (N,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """What of a base model a run trains. At least one of the three flags is set."""

    rank: int
    alpha: float = LORA_ALPHA
    seed: int = 0
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamParams:
    """AdamW with decoupled decay; `grad_clip_norm` of 0 clips nothing."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackward:
    """One request. `forward_only` computes the same numbers and leaves gradients alone."""

    data: Sequence[Datum]
    loss_fn: str = "cross_entropy"
    config: Mapping[str, float | str] = field(default_factory=dict)
    forward_only: bool = False
    custom: CustomLoss | None = None  # what config's loss_id names

    @property
    def num_tokens(self) -> int:
        return sum(len(datum.tokens) for datum in self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackwardOutput:
    """`logprobs[i]` is as long as datum i; metric keys are `name:reduction`, `loss:sum` always."""

    logprobs: Sequence[FloatArray]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimStepOutput:
    """Finite numbers only: they travel as JSON."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Log-probabilities of fixed tokens as the trainer computed them at the moment of saving."""

    tokens: tuple[int, ...]  # (P,)
    logprobs: tuple[float, ...]  # (P - 1,): of tokens[1:], each given what is before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedWeights:
    """What a save wrote: `digest` is of the adapter's tensors, `size_bytes` of the whole folder."""

    digest: str
    size_bytes: int
    has_optimizer: bool
    probe: Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """`max_tokens` None: up to the context. `stop` None: the end token; (): nothing stops."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """`num_samples` continuations of one prompt of token ids."""

    prompt: Sequence[int]
    params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSequence:
    """`tokens` include the stop token; `logprobs` are from before temperature and top-k/p."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOutput:
    """`prompt_logprobs`, where asked for, has the prompt's length; index 0 is None."""

    sequences: Sequence[SampledSequence]
    prompt_logprobs: Sequence[float | None] | None = None
