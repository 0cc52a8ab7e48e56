"""JSON bodies of training passes, to the nouns of training; what does not decode says where."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.requests import MASK
from training.routing import decode_routes
from training.types import Datum, ForwardBackward, IntArray
from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.wire.passes import MAX_BODY_BYTES, shape_values, unpack_sparse

DTYPES: dict[str, Any] = {"float32": np.float32, "int64": np.int64}
REFERENCES = ("routing_references", "top_sampling_references", "sampling_mask_references")
# Of a loss's config: what it is without being told.
PLAIN: Mapping[str, Any] = {
    "output": "logprobs",
    "report_policy_diagnostics": False,
    "score_centering": False,
    "target_logprob_support": "full_vocabulary",
}
SPARSE = ("sparse_crow_indices", "sparse_col_indices")


def read_pass(fields: Fields, *, forward_only: bool) -> ForwardBackward:
    """What stands below `forward_input` or `forward_backward_input`."""
    given, loss_fn = fields.list_of("data", dict), fields.text("loss_fn")
    check_unpacked(given)
    return ForwardBackward(
        data=[
            read_datum(Fields(values, f"datum {i}: "), f"datum {i}", loss_fn)
            for i, values in enumerate(given)
        ],
        loss_fn=loss_fn,
        config=read_config(fields.inner("loss_fn_config")),
        forward_only=forward_only,
    )


def read_config(fields: Fields) -> dict[str, float | str]:
    """Flags are numbers to whoever reads them."""
    return {
        key: value if isinstance(value, str) else read_number(fields, key)
        for key, value in fields.values.items()
        if value is not None and (key not in PLAIN or value != PLAIN[key])
    }


def read_number(fields: Fields, key: str) -> float:
    value = fields.values[key]
    return float(value) if isinstance(value, bool) else fields.number(key)


def read_datum(fields: Fields, where: str, loss_fn: str) -> Datum:
    given, model_input = fields.inner("loss_fn_inputs"), fields.inner("model_input")
    inputs = {name: read_tensor(given.inner(name), f"{where}: {name}") for name in given.values}
    if loss_fn == "gspo" and MASK not in inputs and "advantages" in inputs:
        # In this dialect a sequence's ratio is the mean of the tokens that have an advantage.
        inputs[MASK] = (inputs["advantages"] != 0).astype(np.float32)
    return Datum(
        tokens=read_tokens(model_input, where),
        inputs=inputs,
        routes=read_routes(model_input, where),
    )


def read_routes(model_input: Fields, where: str) -> IntArray | None:
    if any(model_input.has(name) for name in REFERENCES):
        raise UserError(
            f"{where}: only what stands in the request is read here: send routing_matrices, one"
            " base64 text a position, and no references to files."
        )
    if not model_input.has("routing_matrices"):
        return None
    return decode_routes(model_input.list_of("routing_matrices", str), f"{where}: routing_matrices")


def read_tokens(model_input: Fields, where: str) -> IntArray:
    parts = []
    for values in model_input.list_of("chunks", dict):
        chunk = Fields(values, f"{where}: chunks.")
        kind = chunk.text("type", "encoded_text")
        if kind != "encoded_text":
            raise UserError(
                f"{where}: its model_input has a chunk of type {kind[:40]}; the models of this"
                " installation read text only, so send encoded_text chunks."
            )
        parts.append(read_values(chunk.values.get("tokens"), np.int64, f"{where}: tokens"))
    if not parts:
        return np.empty(0, np.int64)
    return np.concatenate(parts)


def read_tensor(tensor: Fields, where: str) -> NDArray[Any]:
    name = tensor.text("dtype", "")
    if name not in DTYPES:
        raise UserError(f"{where}: dtype is {name[:40]!r}: send float32 or int64.")
    values = read_values(tensor.values.get("data"), DTYPES[name], where)
    shape = tensor.list_of("shape", int)
    if any(tensor.has(key) for key in SPARSE):
        starts, columns = (
            read_values(tensor.values.get(key), np.int64, f"{where}: {key}") for key in SPARSE
        )
        return unpack_sparse(values, starts, columns, shape, where)
    return shape_values(values, shape, where)


def read_values(given: Any, dtype: type, where: str) -> NDArray[Any]:
    """One row of numbers. Whole ones are not made of others, which would be cut."""
    try:
        values = np.asarray(given if isinstance(given, list) else [None])
    except (ValueError, OverflowError):
        values = np.asarray([None])
    allowed = "iu" if dtype is np.int64 else "iuf"
    if values.size and (values.ndim != 1 or values.dtype.kind not in allowed):
        kind = "whole numbers" if dtype is np.int64 else "numbers"
        raise UserError(f"{where}: the values are no list of {kind}.")
    if values.dtype.kind == "u" and dtype is np.int64:
        raise UserError(f"{where}: a number is larger than int64 holds.")
    with np.errstate(over="ignore"):  # what is infinite then is refused with its place
        return values.reshape(-1).astype(dtype)


def check_unpacked(data: list[dict[str, Any]]) -> None:
    """A sparse tensor of a few bytes can have any shape, and a request many of them."""
    total = 0
    for datum in data:
        inputs = datum.get("loss_fn_inputs")
        for tensor in inputs.values() if isinstance(inputs, dict) else ():
            if isinstance(tensor, dict) and tensor.get(SPARSE[0]) is not None:
                total += count_bytes(tensor.get("shape"))
    if total > MAX_BODY_BYTES:
        raise UserError(
            f"The sparse tensors unpack to more than {MAX_BODY_BYTES // 2**20} MiB: send fewer"
            " datums in one request."
        )


def count_bytes(shape: Any) -> int:
    """Of a shape that may be anything: what is none is refused where its tensor is read."""
    sizes = shape if isinstance(shape, list) else []
    return 8 * math.prod(abs(size) for size in sizes[:2] if isinstance(size, int))
