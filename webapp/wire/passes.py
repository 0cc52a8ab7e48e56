"""Protobuf bodies and results of the Tinker wire, to and from the nouns of training."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import zstandard
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from training.types import (
    Datum,
    FloatArray,
    ForwardBackward,
    ForwardBackwardOutput,
    IntArray,
)
from webapp.core.errors import UserError
from webapp.wire import wire_pb2 as pb
from webapp.wire.routes import read_routes, write_routes
from webapp.wire.spans import read_spans

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
MAX_BODY_BYTES = 64 * 1024**2  # the SDK splits its requests at 5 MB; one datum may exceed that
MAX_DIMENSIONS = 2  # of any field; an array has at most 64

_DTYPES: Mapping[int, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
    pb.DTYPE_BFLOAT16: np.dtype("<u2"),
}
_TAG = "ArrayRecord"


def decompress(body: bytes, encoding: str) -> bytes:
    """At most `MAX_BODY_BYTES` come out: a small body can unpack to any size."""
    if encoding in ("", "identity"):
        return body
    if encoding != "zstd":
        raise UserError(f"Content-Encoding {encoding} is not read here: send zstd or none.")
    reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body)
    try:
        plain = reader.read(MAX_BODY_BYTES + 1)
    except zstandard.ZstdError as error:
        raise UserError(f"The body is not valid zstd: {error}.") from None
    if len(plain) > MAX_BODY_BYTES:
        raise UserError(
            f"The body unpacks to more than {MAX_BODY_BYTES // 2**20} MiB: send fewer datums in"
            " one request."
        )
    return plain


def decode_forward_backward(body: bytes) -> tuple[str, int, ForwardBackward]:
    """Model id, seq and request. What does not decode is the caller's mistake, and says where."""
    message = parse_forward_backward(body)
    return message.model_id, message.seq_id, read_forward_backward(message)


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    try:
        return pb.ForwardBackwardRequest.FromString(body)
    except DecodeError:
        raise UserError("The body is not a ForwardBackwardRequest protobuf.") from None


def read_forward_backward(message: pb.ForwardBackwardRequest) -> ForwardBackward:
    _check_unpacked(message)
    return ForwardBackward(
        data=[_read_datum(datum, index) for index, datum in enumerate(message.data)],
        loss_fn=message.loss_fn,
        config=_read_config(message),
        forward_only=message.forward_only,
    )


def _check_unpacked(message: pb.ForwardBackwardRequest) -> None:
    """A sparse tensor of a few bytes can have any shape, and a request many of them."""
    tensors = [tensor for datum in message.data for tensor in datum.loss_fn_inputs.values()]
    sparse = [tensor for tensor in tensors if tensor.WhichOneof("encoding") == "sparse_csr"]
    if sum(8 * math.prod(map(abs, tensor.shape[:2])) for tensor in sparse) > MAX_BODY_BYTES:
        raise UserError(
            f"The sparse tensors unpack to more than {MAX_BODY_BYTES // 2**20} MiB: send fewer"
            " datums in one request."
        )


def _read_config(message: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        config[key] = value.text if value.WhichOneof("value") == "text" else value.number
    return config


def _read_datum(datum: pb.Datum, index: int) -> Datum:
    tokens = _read_tokens(datum, index)
    inputs = {
        key: _read_tensor(tensor, f"datum {index}: {key}")
        for key, tensor in datum.loss_fn_inputs.items()
    }
    num_targets = len(inputs.get("target_tokens", tokens))
    return Datum(
        tokens=tokens,
        inputs=inputs,
        sampled=read_spans(datum, len(tokens), num_targets, f"datum {index}"),
        routes=read_routes(datum.routes, f"datum {index}: routes")
        if datum.HasField("routes")
        else None,
    )


def _read_tokens(datum: pb.Datum, index: int) -> IntArray:
    parts = []
    for chunk in datum.model_input:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise UserError(
                f"datum {index}: its model_input has a chunk of kind {kind or 'unknown'}; the"
                " models of this installation read text only, so send encoded_text chunks."
            )
        where = f"datum {index}: model_input"
        parts.append(_read_buffer(chunk.encoded_text.tokens, np.dtype("<i4"), where))
    if not parts:
        return np.empty(0, np.int64)
    return np.concatenate(parts).astype(np.int64)


def _read_tensor(tensor: pb.Tensor, where: str) -> NDArray[Any]:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise UserError(f"{where}: the dtype is unknown; send float32 or int64.")
    if tensor.WhichOneof("encoding") == "sparse_csr":
        values = _read_sparse(tensor, dtype, where)
    else:
        values = shape_values(_read_buffer(tensor.dense, dtype, where), tensor.shape, where)
    return _widen(values, tensor.dtype)


def _read_buffer(data: bytes, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise UserError(
            f"{where}: {len(data)} bytes are no whole number of {dtype.itemsize}-byte values."
        )
    return np.frombuffer(data, dtype)


def shape_values(values: NDArray[Any], shape: Sequence[int], where: str) -> NDArray[Any]:
    if not shape:
        return values
    if len(shape) > MAX_DIMENSIONS or not is_sized(shape) or math.prod(shape) != values.size:
        raise UserError(f"{where}: the shape {list(shape)} does not hold {values.size} values.")
    return values.reshape(shape)


def is_sized(shape: Sequence[int]) -> bool:
    """Beside a 0 any size would fit, and numpy knows no arrays of some."""
    return all(0 <= size <= MAX_BODY_BYTES for size in shape)


def _read_sparse(tensor: pb.Tensor, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    csr = tensor.sparse_csr
    return unpack_sparse(
        _read_buffer(csr.values, dtype, where),
        _read_buffer(csr.crow_indices, np.dtype("<i8"), where),
        _read_buffer(csr.col_indices, np.dtype("<i8"), where),
        list(tensor.shape),
        where,
    )


def unpack_sparse(
    values: NDArray[Any],
    row_starts: NDArray[Any],
    columns: NDArray[Any],
    shape: list[int],
    where: str,
) -> NDArray[Any]:
    """Cells that are not listed are 0, in every field: each is made sparse by itself."""
    if len(shape) != 2 or not is_sized(shape):
        raise UserError(f"{where}: a sparse tensor of the shape {shape} cannot be unpacked here.")
    num_rows, num_columns = shape
    fits = (
        len(row_starts) == num_rows + 1
        and len(columns) == len(values)
        and int(row_starts[0]) == 0
        and int(row_starts[-1]) == len(values)
        and bool((np.diff(row_starts) >= 0).all())
        and bool(((columns >= 0) & (columns < num_columns)).all())
    )
    if not fits:
        raise UserError(f"{where}: the sparse rows and columns do not fit the shape {shape}.")
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(num_rows), np.diff(row_starts)), columns] = values
    return dense


def _widen(values: NDArray[Any], dtype: int) -> NDArray[Any]:
    if dtype == pb.DTYPE_BFLOAT16:  # the upper half of a float32's bits
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.int64) if values.dtype.kind == "i" else values


def encode_forward_backward(model_id: str, seq: int, request: ForwardBackward) -> bytes:
    """The same request gives the same bytes: a recipe that starts again sends them again."""
    message = pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq, loss_fn=request.loss_fn, forward_only=request.forward_only
    )
    for key, value in request.config.items():
        if isinstance(value, str):
            message.loss_fn_config_v2[key].text = value
        else:
            message.loss_fn_config_v2[key].number = value
    for datum in request.data:
        _write_datum(message.data.add(), datum)
    return message.SerializeToString(deterministic=True)


def _write_datum(message: pb.Datum, datum: Datum) -> None:
    message.model_input.add().encoded_text.tokens = datum.tokens.astype("<i4").tobytes()
    if datum.routes is not None:
        message.routes.CopyFrom(write_routes(datum.routes))
    for key, values in datum.inputs.items():
        tensor = message.loss_fn_inputs[key]
        is_float = values.dtype.kind == "f"
        tensor.dtype = pb.DTYPE_FLOAT32 if is_float else pb.DTYPE_INT64
        tensor.dense = values.astype("<f4" if is_float else "<i8").tobytes()
        tensor.shape.extend(values.shape)


def encode_output(output: ForwardBackwardOutput) -> bytes:
    """A record for each series of datums with equally many numbers a position."""
    name, told = "logprobs", output.logprobs
    if output.vectors is not None:
        name, told = output.vector_name, output.vectors
    series = groupby(told, key=lambda values: values.shape[1:])
    message = pb.ForwardBackwardOutput(
        loss_fn_output_type=_TAG,
        loss_fn_outputs=[_write_record(name, list(same), trailing) for trailing, same in series],
        metrics=output.metrics,
    )
    return message.SerializeToString(deterministic=True)


def _write_record(
    name: str, series: Sequence[FloatArray], trailing_shape: Sequence[int]
) -> pb.ArrayRecord:
    offsets = np.array([0, *(4 * values.size for values in series)], "<i8").cumsum()
    tensor = pb.BatchedTensor(
        data=b"".join(values.astype("<f4").tobytes() for values in series),
        offsets=offsets.astype("<i8").tobytes(),
        dtype=pb.DTYPE_FLOAT32,
        trailing_shape=trailing_shape,
    )
    return pb.ArrayRecord(type_tag=_TAG, fields={name: tensor}, num_datums=len(series))


def decode_output(body: bytes) -> ForwardBackwardOutput:
    message = pb.ForwardBackwardOutput.FromString(body)
    tensors = [next(iter(record.fields.items())) for record in message.loss_fn_outputs]
    told = [
        np.frombuffer(tensor.data[start:end], "<f4").reshape(-1, *tensor.trailing_shape)
        for _, tensor in tensors
        for start, end in pairwise(np.frombuffer(tensor.offsets, "<i8"))
    ]
    metrics, name = dict(message.metrics), tensors[0][0] if tensors else "logprobs"
    if name == "logprobs":
        return ForwardBackwardOutput(logprobs=told, metrics=metrics)
    empty = [np.zeros(0, np.float32) for _ in told]
    return ForwardBackwardOutput(logprobs=empty, metrics=metrics, vectors=told, vector_name=name)
