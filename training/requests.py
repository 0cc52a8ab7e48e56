"""What a forward_backward may contain, and the refusal that names the datum and the field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidInput
from training.graphs import MAX_CALLS, CustomLoss
from training.types import Datum, ForwardBackward
from training.vectors import check_vectors

CUSTOM = "custom"
LOSS_ID = "loss_id"  # config of a custom loss: which one
LOGPROBS = "logprobs"  # config: "all" (default), or "weighted" where zeros elsewhere are fine
# config of a policy loss: what the samples were drawn at. Its log-probabilities, those that are
# told among them, are then of the logits divided by it.
TEMPERATURE = "temperature"
HOTTEST = 1000.0
RATIO_BOUNDS = ("clip_low_threshold", "clip_high_threshold")
MASK = "sequence_ratio_mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The fields a loss reads. It has no use for a position whose `scale` is all 0; (): for all."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    has_columns: bool = False  # it reads K targets a position, of the shape (N, K)
    is_by_datum: bool = False  # it looks at a datum as a whole
    config: Mapping[str, float] = field(default_factory=dict)


# Of stable_reinforce, Hone's own objective: the largest weight of a token, and how far off in
# log-probability a token may be until it is pulled back no harder.
TRUNCATION = 2.0
PULL_LIMIT = 1.0

# Where Hone had to decide for itself what a name of the protocol computes.
OWN_READINGS = {
    "stable_reinforce": "Hone's own objective: docs/stable_reinforce.md",
    "dapo": "Hone's own reading: the token loss of DAPO, arXiv 2503.14476, summed",
    "dppo": "Hone's own reading: DPPO with the binary total variation, arXiv 2602.04879",
    "reinforce": "Hone's own reading: advantage times log-probability, without a ratio",
    "dimuon": "Hone's own reading: Muon on each LoRA matrix, docs/dimuon.md",
}
# Means over the tokens with an advantage, where a loss has them.
POLICY_METRICS = ("clipped", "ratio", "kl_sample_train_k1", "kl_sample_train_k3")

_POLICY = ("logprobs", "advantages")
_BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

NEVER_NEGATIVE = ("kl_coeff", "delta_low", "delta_high")

LOSS_INPUTS: Mapping[str, LossInputs] = {
    "cross_entropy": LossInputs(optional=("weights",), scale=("weights",), has_columns=True),
    "importance_sampling": LossInputs(required=_POLICY, scale=("advantages",)),
    "ppo": LossInputs(
        required=_POLICY, optional=RATIO_BOUNDS, scale=("advantages",), config=_BOUNDS
    ),
    "cispo": LossInputs(
        required=_POLICY,
        optional=RATIO_BOUNDS,
        scale=("advantages",),
        config={"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    ),
    # The documentation names no default for beta; 0.05 is the value of its example.
    "dro": LossInputs(required=_POLICY, config={"beta": 0.05}),
    # No default of its bounds is documented; they are those of ppo.
    "gspo": LossInputs(
        required=(*_POLICY, MASK),
        optional=RATIO_BOUNDS,
        scale=("advantages", MASK),
        is_by_datum=True,
        config=_BOUNDS,
    ),
    # The default pulls as hard as dro does, whose penalty it is near the sampling policy.
    "stable_reinforce": LossInputs(
        required=_POLICY, scale=("advantages",), config={"kl_coeff": 0.05}
    ),
    # Clip-higher: a ratio may grow further than it may shrink (arXiv 2503.14476, equation 8).
    "dapo": LossInputs(
        required=_POLICY,
        optional=RATIO_BOUNDS,
        scale=("advantages",),
        config={"clip_low_threshold": 0.8, "clip_high_threshold": 1.28},
    ),
    # By how much a token's probability may move (arXiv 2602.04879).
    "dppo": LossInputs(
        required=_POLICY, scale=("advantages",), config={"delta_low": 0.2, "delta_high": 0.2}
    ),
    "reinforce": LossInputs(required=_POLICY, scale=("advantages",)),
    CUSTOM: LossInputs(has_columns=True),  # reads what the loss was created with
}


def check_request(request: ForwardBackward, vocab_size: int, context: int) -> None:
    """Raise InvalidInput on the first thing that cannot be computed."""
    if request.loss_fn not in LOSS_INPUTS:
        known = ", ".join(LOSS_INPUTS)
        raise InvalidInput(f"loss_fn {request.loss_fn!r} is not known here: use one of {known}")
    if request.asks_vectors:
        check_vectors(request)
    else:
        _check_config(request, LOSS_INPUTS[request.loss_fn])
    if not request.data:
        raise InvalidInput("data is empty: send at least one datum")
    if request.loss_fn == CUSTOM:
        _check_calls(_find_custom(request), len(request.data))
    for index, datum in enumerate(request.data):
        _check_tokens(datum, f"datum {index}", vocab_size, context)
        if not request.asks_vectors:
            _check_inputs(datum, f"datum {index}", request, vocab_size)


def _check_inputs(datum: Datum, where: str, request: ForwardBackward, vocab_size: int) -> None:
    _check_targets(datum, where, vocab_size)
    _check_columns(datum, f"{where}: target_tokens", request.loss_fn, vocab_size)
    _check_numbers(datum, where, request.loss_fn, LOSS_INPUTS[request.loss_fn])
    _check_sequence(datum, where, request.loss_fn)
    if request.custom is not None:
        _check_custom(datum, where, request.custom)


def _check_config(request: ForwardBackward, loss: LossInputs) -> None:
    for key, value in request.config.items():
        if key == LOGPROBS:
            if value not in ("all", "weighted"):
                raise InvalidInput(f"config {key!r} is {value!r}: say 'all' or 'weighted'")
        elif key == LOSS_ID and request.loss_fn == CUSTOM:
            continue
        elif key == TEMPERATURE and "logprobs" in loss.required:
            _check_temperature(value)
        elif key not in loss.config:
            known = ", ".join(sorted(loss.config)) or "no keys"
            raise InvalidInput(f"config {key!r}: {request.loss_fn} knows {known}")
        elif isinstance(value, str) or not math.isfinite(value):
            raise InvalidInput(f"config {key!r} is {value!r}: send a finite number")
        elif key in NEVER_NEGATIVE and value < 0:
            raise InvalidInput(f"config {key!r} is {value}: send a number of 0 or more")
    low, high = ({**loss.config, **request.config}.get(key) for key in RATIO_BOUNDS)
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise InvalidInput(f"config 'clip_low_threshold' is {low}, above the high one of {high}")


def _check_temperature(value: float | str) -> None:
    if isinstance(value, str) or not 0 < value <= HOTTEST:
        raise InvalidInput(
            f"config {TEMPERATURE!r} is {value!r}: send a number above 0 and up to {HOTTEST:g}"
        )


def read_temperature(request: ForwardBackward) -> float:
    return float(request.config.get(TEMPERATURE, 1.0))


def _find_custom(request: ForwardBackward) -> CustomLoss:
    if request.custom is None:
        raise InvalidInput(
            f"config {LOSS_ID!r} is missing: the loss_fn custom is what create_custom_loss made"
        )
    return request.custom


def _check_calls(loss: CustomLoss, num_datums: int) -> None:
    most = MAX_CALLS // max(1, len(loss.nodes))
    if num_datums > most:
        raise InvalidInput(
            f"data has {num_datums} datums: the custom loss {loss.name} has {len(loss.nodes)}"
            f" operations, so send at most {most} datums in one request"
        )


def _check_custom(datum: Datum, where: str, loss: CustomLoss) -> None:
    """Every input is there and has the number of dimensions that the loss was created with."""
    for needed in loss.inputs:
        name = "target_tokens" if needed.name == "logprobs" else needed.name
        if name not in datum.inputs:
            raise InvalidInput(f"{where}: {name} is missing: the custom loss {loss.name} reads it")
        values = datum.inputs[name]
        # A number comes as one value without a shape.
        is_number = needed.rank == 0 and values.shape == (1,)
        if values.ndim != needed.rank and not is_number:
            raise InvalidInput(
                f"{where}: {name} has the shape {values.shape}, but the custom loss {loss.name}"
                f" declared {needed.name} with rank {needed.rank}"
            )


def _check_tokens(datum: Datum, where: str, vocab_size: int, context: int) -> None:
    if datum.tokens.ndim != 1 or not len(datum.tokens):
        raise InvalidInput(f"{where}: tokens are empty: send at least one token")
    if len(datum.tokens) > context:
        raise InvalidInput(
            f"{where}: {len(datum.tokens)} tokens do not fit the model's context of {context}: "
            "shorten or split the sequence"
        )
    _check_ids(datum.tokens, f"{where}: tokens", vocab_size)


def _check_targets(datum: Datum, where: str, vocab_size: int) -> None:
    if "target_tokens" not in datum.inputs:
        raise InvalidInput(f"{where}: target_tokens is missing: send the token after each position")
    targets = datum.inputs["target_tokens"]
    if targets.ndim not in (1, 2) or len(targets) != len(datum.tokens):
        raise InvalidInput(
            f"{where}: target_tokens has the shape {targets.shape}, the datum has "
            f"{len(datum.tokens)} tokens: send one row per token"
        )
    _check_ids(targets, f"{where}: target_tokens", vocab_size)


def _check_columns(datum: Datum, where: str, loss_fn: str, vocab_size: int) -> None:
    targets = datum.inputs["target_tokens"]
    if targets.ndim == 1:
        return
    if not LOSS_INPUTS[loss_fn].has_columns:
        raise InvalidInput(
            f"{where} has the shape {targets.shape}: {loss_fn} reads one target per position, "
            "several are for cross_entropy and custom losses"
        )
    if not 1 <= targets.shape[1] <= vocab_size:
        raise InvalidInput(
            f"{where} has the shape {targets.shape}: send from 1 to {vocab_size} targets per "
            "position, the size of the vocabulary"
        )


def _check_numbers(datum: Datum, where: str, loss_fn: str, loss: LossInputs) -> None:
    for name in loss.required:
        if name not in datum.inputs:
            raise InvalidInput(f"{where}: {name} is missing: {loss_fn} reads one per position")
    for name in (*loss.required, *loss.optional):
        if name in datum.inputs:
            values = datum.inputs[name]
            _check_shape(values, datum, f"{where}: {name}")
            _check_finite(values, f"{where}: {name}")


def _check_shape(values: NDArray[Any], datum: Datum, where: str) -> None:
    expected = datum.inputs["target_tokens"].shape
    if values.shape != expected:
        raise InvalidInput(
            f"{where} has the shape {values.shape}, target_tokens {expected}: "
            "send one value per target"
        )


def _check_sequence(datum: Datum, where: str, loss_fn: str) -> None:
    advantages = datum.inputs.get("advantages")
    if advantages is None:
        return
    if loss_fn == "gspo" and advantages.any() and not datum.inputs[MASK].any():
        raise InvalidInput(
            f"{where}: {MASK} is 0 everywhere, though advantages are not: mark the tokens that the "
            "ratio of the sequence is the mean of"
        )
    if loss_fn == "stable_reinforce" and datum.sampled is not None:
        wrong = np.flatnonzero((advantages != 0) & ~datum.sampled)
        if len(wrong):
            raise InvalidInput(
                f"{where}: advantages: {advantages[wrong[0]]} at position {wrong[0]}, where "
                "loss_fn_input_spans has a prompt: stable_reinforce trains sampled tokens only"
            )


def _check_ids(ids: NDArray[Any], where: str, vocab_size: int) -> None:
    if ids.dtype.kind not in "iu":
        raise InvalidInput(f"{where} are {ids.dtype}: send integers")
    wrong = np.argwhere((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        raise InvalidInput(
            f"{where}: {ids[tuple(wrong[0])]} at position {_name_place(wrong[0])} is no token of "
            f"this model: ids go from 0 to {vocab_size - 1}"
        )


def _check_finite(values: NDArray[Any], where: str) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        value, place = values[tuple(wrong[0])], _name_place(wrong[0])
        raise InvalidInput(f"{where}: {value} at position {place} is not finite")


def _name_place(indices: NDArray[Any]) -> str:
    return ", column ".join(str(index) for index in indices)


def find_scored(datum: Datum, loss_fn: str) -> NDArray[np.bool_]:
    """Which targets the loss looks at, (N, K): it has no gradient at the others."""
    scales = LOSS_INPUTS[loss_fn].scale
    shape = (len(datum.tokens), datum.num_targets)
    if not scales or scales[0] not in datum.inputs:
        return np.ones(shape, dtype=np.bool_)
    found = [datum.inputs[name].reshape(shape) != 0 for name in scales]
    return np.asarray(np.stack(found).any(axis=0))
