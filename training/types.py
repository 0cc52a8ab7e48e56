"""The nouns of training, decoded: datums, adapters, requests, results. No torch, no framework."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.graphs import CALLS_A_TOKEN, CustomLoss

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

# The Tinker wire carries no alpha; one constant for all ranks keeps learning rates comparable.
LORA_ALPHA = 32.0
MAX_RANK = 512
NO_TOKEN = -99999.0  # the log-probability of a cell that holds none

CheckpointKind = Literal["training", "sampler"]
# How a checkpoint holds its weights: a LoRA adapter, a folder that loaders of whole models read, or
# what differs from the weights of another one.
CheckpointType = Literal["adapter", "base", "delta"]
StopReason = Literal["stop", "length"]
Optimizer = Literal["adamw", "dimuon"]  # of a run, from its creation to its end
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "dimuon")
# What a step divides the summed gradients by, before they are clipped: nothing, or how many tokens
# or sequences had a gradient that is not zero since the step before.
GradAccNormalization = Literal["none", "num_loss_tokens", "num_sequences"]
NORMALIZATIONS: tuple[GradAccNormalization, ...] = ("none", "num_loss_tokens", "num_sequences")
GradNormMetrics = Literal["off", "basic", "detailed"]  # what a step tells of its gradients' norms
GRAD_NORM_METRICS: tuple[GradNormMetrics, ...] = ("off", "basic", "detailed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One sequence. Position i of `inputs` speaks of the token that follows `tokens[i]`.

    `target_tokens` and `weights` may be (N, K): K candidates for the token that follows.
    `routes`, for a mixture of experts: what each of the L layers with experts has to choose for
    each token; a layer's k ids may all be -1, then it chooses itself.
    """

    tokens: IntArray  # (N,)
    inputs: Mapping[str, NDArray[Any]]  # target_tokens, weights, advantages ...: (N,)
    sampled: NDArray[np.bool_] | None = None  # (N,): which targets were sampled, where that is told
    routes: IntArray | None = None  # (N, L, k)

    @property
    def num_targets(self) -> int:
        """Of each position; 0: nothing is asked of its tokens, but of the hidden states."""
        if "target_tokens" not in self.inputs:
            return 0
        shape = self.inputs["target_tokens"].shape
        return shape[1] if len(shape) == 2 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """What of a base model a run trains. At least one of the four flags is set.

    Rank 0 is a full-parameter run: all weights of the model, whatever the other fields say.
    """

    rank: int
    alpha: float = LORA_ALPHA
    seed: int = 0
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = False
    train_embed: bool = False  # the input embedding; no flag of a client means it
    projection_head_dim: int = 0  # of a matrix that hidden states are multiplied with, where asked

    @property
    def has_parts(self) -> bool:
        return self.train_mlp or self.train_attn or self.train_unembed or self.train_embed

    @property
    def is_full(self) -> bool:
        return self.rank == 0


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
class DimuonParams:
    """Momentum made orthogonal; `grad_clip_norm` of 0 or less clips nothing."""

    learning_rate: float
    grad_clip_norm: float = 0.0
    beta1: float = 0.9


OptimizerParams = AdamParams | DimuonParams


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What a step is asked besides its optimizer's parameters. In a payload they have these names,
    beside the parameters."""

    grad_accumulation_normalization: GradAccNormalization = "none"
    emit_grad_norm_metrics: GradNormMetrics = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackward:
    """One request. `forward_only` computes the same numbers and leaves gradients alone."""

    data: Sequence[Datum]
    loss_fn: str = "cross_entropy"
    config: Mapping[str, float | str] = field(default_factory=dict)
    forward_only: bool = False
    custom: CustomLoss | None = None  # what config's loss_id names
    with_routes: bool = False  # tell which experts were chosen; of a mixture only

    @property
    def output(self) -> str:
        """What is asked of the data: `logprobs`, or one of `training.vectors`."""
        return str(self.config.get("output", "logprobs"))

    @property
    def asks_vectors(self) -> bool:
        return self.output != "logprobs"

    @property
    def num_tokens(self) -> int:
        return sum(len(datum.tokens) for datum in self.data)

    @property
    def weight(self) -> int:
        """In tokens of a pass; the calls of a custom loss take their time beside the model's."""
        num_calls = len(self.custom.nodes) * len(self.data) if self.custom else 0
        return self.num_tokens + num_calls // CALLS_A_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackwardOutput:
    """`logprobs[i]` has the shape of datum i's `target_tokens`; metric keys are `name:reduction`,
    `loss:sum` always. `routes`, where they were asked for, are as in `Datum`. Where the request's
    output is no log-probabilities these are empty, and `vectors` are what it is."""

    logprobs: Sequence[FloatArray]
    metrics: Mapping[str, float]
    routes: Sequence[IntArray] | None = None
    vectors: Sequence[FloatArray] | None = None
    vector_name: str = "embedding"  # of one of them, as answers have it


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
    """What a save wrote: `digest` is of the weights, `size_bytes` of the whole folder."""

    digest: str
    size_bytes: int
    has_optimizer: bool
    probe: Probe
    type: CheckpointType = "adapter"
    ratio: float | None = None  # a delta's bytes to those of all weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """`max_tokens` None: up to the context. `stop` (): nothing stops, else the end token does too.

    `seed` makes a request repeatable: each of its samples has a stream of its own, so they differ.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTokens:
    """Tokens to score at places of a prompt: row i of `shape` speaks of the prompt's token i + 1.

    -1 asks for nothing. With `row_starts` and `columns` only the listed cells do (CSR); without
    them `ids` are all cells of the shape, row by row.
    """

    ids: IntArray
    shape: tuple[int, int]
    row_starts: IntArray | None = None
    columns: IntArray | None = None

    def find_rows(self) -> IntArray:
        """The row of each of `ids`."""
        num_rows, num_columns = self.shape
        if self.row_starts is None:
            return np.repeat(np.arange(num_rows), num_columns)
        return np.repeat(np.arange(num_rows), np.diff(self.row_starts))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """`num_samples` continuations of one prompt of token ids, and what is asked of the prompt.

    `prompt_logprobs_last_n` bounds both kinds of the prompt's log-probabilities, the others not.
    """

    prompt: Sequence[int]
    params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TargetTokens | None = None
    prompt_alt_tokens_k: int = 0  # drawn at the request's temperature, without top-k and top-p
    with_routes: bool = False  # tell which experts were chosen; of a mixture only
    with_both_logprobs: bool = False  # the model's own, and those of what was drawn from
    without_logprobs: bool = False  # nobody reads those of the samples: some servers spare them


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """(N, k) tokens with their log-probabilities; a cell without a token is (0, NO_TOKEN)."""

    token_ids: IntArray
    logprobs: FloatArray

    @classmethod
    def make_empty(cls, num_rows: int, k: int) -> "TokenLogprobs":
        return cls(
            token_ids=np.zeros((num_rows, k), np.int64),
            logprobs=np.full((num_rows, k), NO_TOKEN, np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSequence:
    """`tokens` include the stop token.

    `logprobs` are of the distribution that was drawn from: scaled by the request's temperature,
    from before top-k and top-p. Temperature 0 draws nothing: there they are the model's own.
    `raw_logprobs`, where they were asked for, are the model's own at any temperature, and
    `drawn_logprobs` count top-k and top-p too; None: this server does not tell them apart.
    `routes`, where they were asked for, are of the positions that the tokens were drawn from.
    Whoever wants no `logprobs` at all has none here.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: StopReason
    raw_logprobs: Sequence[float | None] | None = None
    drawn_logprobs: Sequence[float | None] | None = None
    topk_logprobs: TokenLogprobs | None = None  # at each place the likeliest, likeliest first
    routes: IntArray | None = None  # (N, L, k), as in `Datum`


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOutput:
    """What was asked for; the rest is None. Log-probabilities of a prompt are the model's own.

    `prompt_logprobs` has the prompt's length, None where nothing was computed: at index 0 always.
    `topk_prompt_logprobs` has no tokens there. `target_prompt_logprobs` are of the request's
    `ids`, 0 for -1. Row i of `prompt_alt_tokens` are alternatives to the prompt's token i + 1.
    `prompt_routes` are those of all the prompt's tokens but the last: with a sequence's behind them
    they are the routes of prompt and sequence as a datum.
    """

    sequences: Sequence[SampledSequence]
    prompt_logprobs: Sequence[float | None] | None = None
    topk_prompt_logprobs: TokenLogprobs | None = None
    target_prompt_logprobs: FloatArray | None = None
    prompt_alt_tokens: TokenLogprobs | None = None
    prompt_routes: IntArray | None = None
    prompt_cache_hit_tokens: int = 0  # whose keys and values were there: they were not read again
