"""Bodies that no SDK sends: JSON with anything in any place, protobuf that is nearly right."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zstandard
from hypothesis import strategies as st

from webapp.wire import wire_pb2 as pb

Draw = Callable[..., Any]

# What json.dumps cannot write stands in the text as one of these words until the end.
RAW: Mapping[str, str] = {
    "@infinite": "1e999",
    "@digits": "9" * 5000,
    "@deep": "[" * 90 + "]" * 90,
    "@deeper": '{"a":' * 700 + "1" + "}" * 700,
    "@deepest": "[" * 20_000 + "]" * 20_000,
    "@half": '"\\ud800"',
    "@nul": '"a\\u0000b"',
}
WHOLE = (0, -1, 1, 512, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30)
FLOATS = (0.5, -0.0, 5e-324, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "é" * 200, "x" * 300, "x" * 70_000, "../../etc/passwd", "a/b", "\n", "0", "null")
SHAPES: Sequence[Any] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"type": None},
    [0, "a"],
    {"a": [1.5]},
)
ODD: Sequence[Any] = (*WHOLE, *FLOATS, *TEXTS, *SHAPES, *RAW)

odd_values = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.sampled_from(ODD), max_size=3),
    st.dictionaries(st.text(max_size=4), st.sampled_from(ODD), max_size=3),
)


@st.composite
def json_bodies(draw: Draw, template: Mapping[str, Any]) -> bytes:
    """The template with a few places changed, as text with a few bytes changed."""
    values = copy.deepcopy(dict(template))
    for _ in range(draw(st.integers(1, 3))):
        _change_a_place(draw, values)
    text = json.dumps(values)
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"', raw)
    if draw(st.integers(0, 9)) == 0:  # a key twice: the last one counts
        key = json.dumps(draw(st.sampled_from([*values, "type"])))
        text = f"{{{key}: {json.dumps(draw(st.sampled_from(WHOLE)))}, {text[1:]}"
    body = text.encode()
    return body if draw(st.integers(0, 4)) else draw(damaged(body))


def _change_a_place(draw: Draw, values: Any) -> None:
    """In the body itself or further in."""
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    key = draw(st.sampled_from([*keys, "odd"])) if keys else "odd"
    inner = values[key] if key in keys else None
    if isinstance(inner, dict | list) and draw(st.booleans()):
        _change_a_place(draw, inner)
    elif isinstance(values, list):
        values.append(copy.deepcopy(draw(odd_values)))
    elif key in values and draw(st.integers(0, 4)) == 0:
        del values[key]
    else:
        values[key] = copy.deepcopy(draw(odd_values))


@st.composite
def damaged(draw: Draw, body: bytes) -> bytes:
    """Cut, doubled, with a byte changed or added, or garbage from the start."""
    where = draw(st.integers(0, 2**16)) % max(1, len(body))
    byte = bytes([draw(st.integers(0, 255))])
    ways: Sequence[Callable[[], bytes]] = (
        lambda: body[:where],
        lambda: body + body,
        lambda: body[:where] + byte + body[where + 1 :],
        lambda: body[:where] + byte + body[where:],
        lambda: body[:where] + b"\x0b" * 300,  # groups in groups in groups
        lambda: b"\xef\xbb\xbf" + body,
        lambda: bytes(draw(st.binary(max_size=60))),
    )
    way: Callable[[], bytes] = draw(st.sampled_from(ways))
    return way()


LOSSES = (
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "custom",
    "stable_reinforce",
)
INPUTS = (
    "target_tokens",
    "weights",
    "logprobs",
    "advantages",
    "clip_low_threshold",
    "odd\0name",
    "sequence_ratio_mask",
)
DIMENSIONS = st.sampled_from((0, 1, 2, 4, -1, 7, 2**31, 2**62, 2**63 - 1, -(2**63)))
NUMBERS = st.sampled_from((0.0, 1.0, -2.5, float("nan"), float("inf"), 3e38, 1e-45))
IDS = st.sampled_from((0, 5, 499, 999, 1000, -1, 2**31 - 1, -(2**31)))
WIDE_IDS = st.one_of(IDS, st.sampled_from((2**63 - 1, -(2**63))))


def make_message(
    model_id: str, seq: int, loss_fn: str, num_datums: int
) -> pb.ForwardBackwardRequest:
    """A right one: four tokens a datum, and every field that a loss may read."""
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq, loss_fn=loss_fn)
    for _ in range(num_datums):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.array([1, 2, 3, 4], "<i4").tobytes()
        _fill(datum.loss_fn_inputs["target_tokens"], pb.DTYPE_INT64, np.array([2, 3, 4, 5], "<i8"))
        names = INPUTS[1:4] if loss_fn != "cross_entropy" else INPUTS[1:2]
        for name in names:
            _fill(datum.loss_fn_inputs[name], pb.DTYPE_FLOAT32, np.full(4, -0.5, "<f4"))
    return message


def _fill(tensor: pb.Tensor, dtype: int, values: Any) -> None:
    tensor.Clear()
    tensor.dtype = dtype  # type: ignore[assignment]
    tensor.dense = values.tobytes()
    tensor.shape.extend(values.shape)


@st.composite
def messages(draw: Draw, model_id: str, seq: int) -> bytes:
    """A right message with up to three things wrong with it, and a few bytes on top."""
    message = make_message(
        model_id, seq, draw(st.sampled_from(LOSSES)), draw(st.sampled_from((1, 1, 2, 3, 0)))
    )
    for _ in range(draw(st.integers(0, 3))):
        draw(st.sampled_from(CHANGES))(draw, message)
    body = message.SerializeToString()
    return body if draw(st.integers(0, 3)) else draw(damaged(body))


def _change_tensor(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    if not message.data:
        return
    datum = message.data[draw(st.integers(0, len(message.data) - 1))]
    tensor = datum.loss_fn_inputs[draw(st.sampled_from(INPUTS))]
    draw(st.sampled_from(TENSOR_CHANGES))(draw, tensor)


def _change_dtype(draw: Draw, tensor: pb.Tensor) -> None:
    tensor.dtype = draw(st.sampled_from((0, 1, 2, 3, 4, 5, 99, -1)))


def _change_shape(draw: Draw, tensor: pb.Tensor) -> None:
    del tensor.shape[:]
    tensor.shape.extend(draw(st.lists(DIMENSIONS, max_size=4)))


def _change_dense(draw: Draw, tensor: pb.Tensor) -> None:
    tensor.dense = draw(st.binary(max_size=40))


def _change_numbers(draw: Draw, tensor: pb.Tensor) -> None:
    values = draw(st.lists(NUMBERS, min_size=4, max_size=4))
    _fill(tensor, pb.DTYPE_FLOAT32, np.array(values).astype("<f4"))


def _change_ids(draw: Draw, tensor: pb.Tensor) -> None:
    values = draw(st.lists(WIDE_IDS, min_size=4, max_size=4))
    _fill(tensor, pb.DTYPE_INT64, np.array(values, "<i8"))


def _make_wide(draw: Draw, tensor: pb.Tensor) -> None:
    values = np.ones(draw(st.sampled_from(((4, 2), (4, 1), (2, 2), (4, 0), (1, 4)))))
    _fill(tensor, pb.DTYPE_INT64, values.astype("<i8"))


def _make_sparse(draw: Draw, tensor: pb.Tensor) -> None:
    indices = st.lists(st.sampled_from((0, 1, 2, 3, 4, -1, 2**40)), max_size=6)
    for name in ("crow_indices", "col_indices"):
        setattr(tensor.sparse_csr, name, np.array(draw(indices), "<i8").tobytes())
    tensor.sparse_csr.values = np.zeros(draw(st.integers(0, 4)), "<f4").tobytes()
    _change_shape(draw, tensor)


def _make_right_sparse(draw: Draw, tensor: pb.Tensor) -> None:
    columns = draw(st.sampled_from((1, 2, 1000, 2**21, 2**40, 2**62)))
    tensor.Clear()
    tensor.dtype = draw(st.sampled_from((pb.DTYPE_FLOAT32, pb.DTYPE_INT64)))
    width = 4 if tensor.dtype == pb.DTYPE_FLOAT32 else 8
    tensor.sparse_csr.values = b"\0" * width
    tensor.sparse_csr.crow_indices = np.array([0, 1, 1, 1, 1], "<i8").tobytes()
    tensor.sparse_csr.col_indices = np.array([0], "<i8").tobytes()
    tensor.shape.extend([4, columns])


TENSOR_CHANGES = (
    _change_dtype,
    _change_shape,
    _change_dense,
    _change_numbers,
    _change_ids,
    _make_wide,
    _make_sparse,
    _make_right_sparse,
)


def _change_chunks(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    if not message.data:
        return
    datum = message.data[0]
    kind = draw(st.sampled_from(("none", "empty", "cut", "ids", "image", "dmel", "many", "long")))
    if kind == "none":
        del datum.model_input[:]
        return
    chunk = datum.model_input.add()
    if kind == "cut":
        chunk.encoded_text.tokens = b"\1\2\3"
    elif kind == "ids":
        tokens = draw(st.lists(IDS, max_size=4))
        datum.model_input[0].encoded_text.tokens = np.array(tokens, "<i4").tobytes()
    elif kind == "image":
        chunk.image = b"\x0a\x04\x89PNG"
    elif kind == "dmel":
        chunk.dmel = b"\x0a\3\xfe\1\2"
    elif kind == "many":
        datum.model_input.extend([datum.model_input[0]] * 3000)
    elif kind == "long":
        chunk.encoded_text.tokens = b"\1\0\0\0" * 100_000


def _change_config(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    key = draw(
        st.sampled_from(("clip_low_threshold", "beta", "logprobs", "loss_id", "x", "", "\0"))
    )
    if draw(st.booleans()):
        message.loss_fn_config[key] = draw(NUMBERS)
    elif draw(st.booleans()):
        message.loss_fn_config_v2[key].number = draw(NUMBERS)
    else:
        message.loss_fn_config_v2[key].text = draw(st.sampled_from(("", "\0", "all", "x" * 90_000)))


def _change_head(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    what = draw(st.sampled_from(("seq", "loss", "model", "forward")))
    if what == "seq":
        message.seq_id = draw(st.sampled_from((0, -1, -(2**31), 2**31 - 1, 7)))
    elif what == "loss":
        message.loss_fn = draw(st.sampled_from(("", "\0", "x" * 90_000, "CROSS_ENTROPY", "é")))
    elif what == "model":
        message.model_id = draw(st.sampled_from(("", "\0", "x" * 90_000, ":train:", "a:train:-1")))
    else:
        message.forward_only = True


def _change_spans(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    if not message.data:
        return
    datum = message.data[0]
    spans = draw(st.sampled_from((datum.model_input_spans, datum.loss_fn_input_spans)))
    span = spans.add()
    if draw(st.booleans()):
        arm = draw(st.sampled_from((span.prompt_tokens, span.sampled_tokens)))
        arm.sequence_id = draw(st.sampled_from(("", "\0", "ses-1:sample:0/0/0", "x" * 90_000)))
        arm.offset, arm.length = draw(DIMENSIONS), draw(DIMENSIONS)


def _repeat_data(draw: Draw, message: pb.ForwardBackwardRequest) -> None:
    if message.data:
        message.data.extend([message.data[0]] * draw(st.sampled_from((1, 40))))


CHANGES = (
    _change_tensor,
    _change_tensor,
    _change_tensor,
    _change_chunks,
    _change_config,
    _change_head,
    _change_spans,
    _repeat_data,
)


@st.composite
def encoded(draw: Draw, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body as it travels, and the headers that say how."""
    if draw(st.integers(0, 4)):
        return body, {}
    packed = zstandard.compress(body)
    ways = (
        (packed, "zstd"),
        (packed[: len(packed) // 2], "zstd"),
        (packed + packed, "zstd"),
        (packed, "gzip"),
        (packed, "zstd, zstd"),
        (body, "zstd"),
        (packed, "x" * 5000),
    )
    travelling, name = draw(st.sampled_from(ways))
    return travelling, {"Content-Encoding": name}
