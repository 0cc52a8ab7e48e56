"""What a request may ask for instead of log-probabilities: its datums as vectors, or their loss.

Each datum's vector is its last hidden states, pooled. Their gradients come from the client, or from
a loss over all of a request's datums.
"""

import math
from collections.abc import Mapping

from training.errors import InvalidInput
from training.types import Datum, ForwardBackward

OUTPUT = "output"
POOLING = "pooling"
POOLINGS = ("mean", "last")
COSINES = "cos_similarity_matrix"
CONTRASTIVE = "contrastive_loss"
PROJECTION = "projection"  # not pooled: every token's hidden states through the run's own head
# The input of a datum that has the gradients of what a forward gave for it.
GRADIENTS: Mapping[str, str] = {
    "embedding": "embedding_grads",
    PROJECTION: "projection_grads",
    COSINES: "embedding_grads",
}
# Their numbers are of all datums of a request together.
COUPLED = (COSINES, CONTRASTIVE)
OUTPUTS = (*GRADIENTS, CONTRASTIVE)
CONTRASTIVE_KEYS = ("num_queries", "temperature", "num_extra_negatives")
MOST_COUPLED = 2048  # datums: every one is compared with every other


def check_vectors(request: ForwardBackward) -> None:
    """InvalidInput where such a request cannot be computed. Its tokens are checked elsewhere."""
    output = request.output
    if output not in OUTPUTS:
        known = ", ".join(("logprobs", *OUTPUTS))
        raise InvalidInput(f"config 'output' is {output!r}: this model gives {known}")
    if request.loss_fn != "cross_entropy":
        raise InvalidInput(
            f"config 'output' is {output!r}, which goes with the loss_fn cross_entropy, not with "
            f"{request.loss_fn}"
        )
    _check_config(request)
    if output in COUPLED and len(request.data) > MOST_COUPLED:
        raise InvalidInput(
            f"data has {len(request.data)} datums: {output} compares each with each, so send at "
            f"most {MOST_COUPLED} in one request"
        )
    if output == CONTRASTIVE:
        _check_counts(request)
    elif not request.forward_only:
        for index, datum in enumerate(request.data):
            _check_gradients(datum, f"datum {index}", GRADIENTS[output])


def _check_config(request: ForwardBackward) -> None:
    known = (OUTPUT, POOLING, *(CONTRASTIVE_KEYS if request.output == CONTRASTIVE else ()))
    for key in request.config:
        if key not in known:
            raise InvalidInput(
                f"config {key!r}: the output {request.output} knows {', '.join(known)}"
            )
    pooling = request.config.get(POOLING, "mean")
    if pooling not in POOLINGS:
        raise InvalidInput(f"config 'pooling' is {pooling!r}: say 'mean' or 'last'")


def _check_counts(request: ForwardBackward) -> None:
    for key in CONTRASTIVE_KEYS[:2]:
        if key not in request.config:
            raise InvalidInput(f"config {key!r} is missing: the output contrastive_loss reads it")
    queries, extra = (_read_count(request, key) for key in ("num_queries", "num_extra_negatives"))
    temperature = request.config["temperature"]
    if isinstance(temperature, str) or not 1e-6 <= temperature <= 1e6:
        raise InvalidInput(
            f"config 'temperature' is {temperature!r}: send a number from 0.000001 to 1000000"
        )
    if queries < 1 or len(request.data) != 2 * queries + extra:
        raise InvalidInput(
            f"data has {len(request.data)} datums: {queries} queries, as many documents and "
            f"{extra} extra negatives are {2 * queries + extra}, and one query is the least"
        )


def _read_count(request: ForwardBackward, key: str) -> int:
    value = request.config.get(key, 0)
    if isinstance(value, str) or not 0 <= value <= MOST_COUPLED or value != int(value):
        raise InvalidInput(f"config {key!r} is {value!r}: send a whole number of 0 or more")
    return int(value)


def _check_gradients(datum: Datum, where: str, name: str) -> None:
    if name not in datum.inputs:
        raise InvalidInput(f"{where}: {name} is missing: send the gradient of its vector")
    values = datum.inputs[name]
    dimensions = 2 if name == GRADIENTS[PROJECTION] else 1
    if values.dtype.kind not in "fiu" or values.ndim != dimensions:
        wanted = "a row of numbers for each token" if dimensions == 2 else "one row of numbers"
        raise InvalidInput(f"{where}: {name} has the shape {values.shape}: send {wanted}")
    if not math.isfinite(float(values.sum(dtype="float64"))):
        raise InvalidInput(f"{where}: {name} has a number that is not finite")


def check_widths(request: ForwardBackward, width: int, projected: int) -> None:
    """`width`: numbers of a vector; `projected`: of one that went through the run's head, 0 where
    it has none. InvalidInput where gradients have another one."""
    if request.output == PROJECTION and not projected:
        raise InvalidInput(
            "config 'output' is 'projection': this model was created without projection_head_dim"
        )
    if request.forward_only or request.output not in GRADIENTS:
        return
    name = GRADIENTS[request.output]
    for index, datum in enumerate(request.data):
        wanted: tuple[int, ...] = (len(request.data) if request.output == COSINES else width,)
        if request.output == PROJECTION:
            wanted = (len(datum.tokens), projected)
        if datum.inputs[name].shape != wanted:
            raise InvalidInput(
                f"datum {index}: {name} has the shape {datum.inputs[name].shape}, what the forward "
                f"gave for it {wanted}"
            )
