"""Protobuf bodies: there and back, and what does not decode says where."""

import math
from typing import Any

import numpy as np
import pytest
import zstandard

from tests.webapp.tinker.conftest import make_datum, make_request
from training.routing import FREE
from training.types import Datum, ForwardBackward, ForwardBackwardOutput
from webapp.core.errors import UserError
from webapp.wire import passes
from webapp.wire import wire_pb2 as pb


def make_message(**tensor: Any) -> bytes:
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array([5, 6], "<i4").tobytes()
    datum.loss_fn_inputs["weights"].CopyFrom(pb.Tensor(**tensor))
    return message.SerializeToString()


def make_sparse(num_columns: int = 3, **changes: Any) -> bytes:
    indices = {"crow_indices": [0, 1, 1], "col_indices": [2]} | changes
    csr = {name: np.array(values, "<i8").tobytes() for name, values in indices.items()}
    values = np.array([7.0], "<f4").tobytes()
    return make_message(
        sparse_csr=pb.SparseCsr(values=values, **csr),
        dtype=pb.DTYPE_FLOAT32,
        shape=[2, num_columns],
    )


def test_a_request_comes_back_as_it_was() -> None:
    weights = np.array([0, 0.5, -1, 1], np.float32)
    request = make_request(
        make_datum(weights=weights),
        make_datum(2, weights=np.ones(2, np.float32)),
        loss_fn="ppo",
        config={"clip_low_threshold": 0.9, "mode": "x"},
        forward_only=True,
    )
    body = passes.encode_forward_backward("ses-1:train:0", 7, request)
    model_id, seq, decoded = passes.decode_forward_backward(body)
    assert (model_id, seq) == ("ses-1:train:0", 7)
    assert (decoded.loss_fn, decoded.config, decoded.forward_only) == (
        "ppo",
        {"clip_low_threshold": 0.9, "mode": "x"},
        True,
    )
    assert [datum.tokens.tolist() for datum in decoded.data] == [[1, 2, 3, 4], [1, 2]]
    assert decoded.data[0].inputs["weights"].tolist() == weights.tolist()
    assert decoded.data[0].inputs["target_tokens"].dtype == np.int64


def test_the_same_request_gives_the_same_bytes() -> None:
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    one = make_request(config=config)
    two = make_request(config=dict(reversed(config.items())))
    assert passes.encode_forward_backward("m", 1, one) == passes.encode_forward_backward(
        "m", 1, two
    )


def test_several_chunks_of_text_are_one_sequence() -> None:
    message = pb.ForwardBackwardRequest()
    datum = message.data.add()
    for tokens in ([1, 2], [3]):
        datum.model_input.add().encoded_text.tokens = np.array(tokens, "<i4").tobytes()
    assert passes.read_forward_backward(message).data[0].tokens.tolist() == [1, 2, 3]


def add_spans(field: Any, *spans: tuple[str, int], sequence_id: str = "s") -> None:
    for kind, length in spans:
        span = pb.SequenceSpan(sequence_id=sequence_id, length=length)
        field.add(**{kind: span})


def make_spans(*of_targets: tuple[str, int], tokens: int = 3) -> pb.ForwardBackwardRequest:
    """A good datum, and one whose spans of the targets are these."""
    message = pb.ForwardBackwardRequest.FromString(
        passes.encode_forward_backward("m", 1, make_request(make_datum(3), make_datum(3)))
    )
    for datum, spans in zip(
        message.data, ([("prompt_tokens", 1), ("sampled_tokens", 2)], of_targets), strict=True
    ):
        add_spans(datum.model_input_spans, ("prompt_tokens", tokens))
        add_spans(datum.loss_fn_input_spans, *spans)
    return message


def test_spans_tell_which_targets_were_sampled() -> None:
    spans = (("sampled_tokens", 1), ("prompt_tokens", 0), ("prompt_tokens", 2))
    one, other = passes.read_forward_backward(make_spans(*spans)).data
    assert one.sampled is not None
    assert other.sampled is not None
    assert one.sampled.tolist() == [False, True, True]
    assert other.sampled.tolist() == [True, False, False]
    assert passes.read_forward_backward(pb.ForwardBackwardRequest()).data == []


@pytest.mark.parametrize(
    ("spans", "complaint"),
    [
        ([], "datum 1: loss_fn_input_spans are missing"),
        ([("sampled_tokens", 2)], "datum 1: loss_fn_input_spans cover 2 positions.*has 3"),
        ([("sampled_tokens", 2**40)], "datum 1: loss_fn_input_spans cover 1099511627776"),
        ([("sampled_tokens", 4), ("prompt_tokens", -1)], r"spans\[1\] has the offset 0 and .* -1"),
    ],
)
def test_spans_that_do_not_tile_are_refused(spans: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        passes.read_forward_backward(make_spans(*spans))


def test_spans_of_the_input_tile_it_too_and_name_a_sample() -> None:
    good = (("sampled_tokens", 3),)
    with pytest.raises(UserError, match=r"datum 0: model_input_spans cover 5 .* model_input has 3"):
        passes.read_forward_backward(make_spans(*good, tokens=5))
    message = make_spans(*good)
    message.data[1].loss_fn_input_spans[0].sampled_tokens.sequence_id = ""
    with pytest.raises(UserError, match=r"datum 1: .*\[0\] names no sequence_id"):
        passes.read_forward_backward(message)
    message.data[1].loss_fn_input_spans[0].Clear()
    with pytest.raises(UserError, match=r"datum 1: .*\[0\] is empty"):
        passes.read_forward_backward(message)
    del message.data[0].model_input_spans[:]
    with pytest.raises(UserError, match="datum 0: model_input_spans are missing"):
        passes.read_forward_backward(message)


def test_images_are_refused_with_a_sentence() -> None:
    message = pb.ForwardBackwardRequest()
    message.data.add().model_input.add().image = b""
    with pytest.raises(UserError, match=r"datum 0: .*kind image.*text only"):
        passes.read_forward_backward(message)


def test_a_sparse_tensor_is_made_dense() -> None:
    _, _, request = passes.decode_forward_backward(make_sparse())
    assert request.data[0].inputs["weights"].tolist() == [[0, 0, 7], [0, 0, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"crow_indices": [0, 1]},
        {"crow_indices": [0, 2, 1]},
        {"crow_indices": [0, 1, 2]},
        {"crow_indices": [1, 1, 1]},
        {"col_indices": [3]},
        {"col_indices": [-1]},
        {"col_indices": [0, 1]},
    ],
)
def test_sparse_indices_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="datum 0: weights: the sparse rows and columns"):
        passes.decode_forward_backward(make_sparse(**changes))


def test_a_sparse_tensor_cannot_unpack_to_any_size() -> None:
    with pytest.raises(UserError, match="unpack to more than"):
        passes.decode_forward_backward(make_sparse(num_columns=10**12))


def test_many_small_sparse_tensors_cannot_unpack_to_any_size_together() -> None:
    message = pb.ForwardBackwardRequest.FromString(make_sparse(num_columns=1_000_000))
    assert passes.read_forward_backward(message).data[0].inputs["weights"].shape == (2, 1_000_000)
    for _ in range(4):
        message.data.add().CopyFrom(message.data[0])
    with pytest.raises(UserError, match="sparse tensors unpack to more than 64 MiB"):
        passes.read_forward_backward(message)


@pytest.mark.parametrize("shape", [[1] * 100, [2, 1, 1], [-2]])
def test_a_shape_that_no_field_has_is_refused(shape: list[int]) -> None:
    dense = np.array([1.0, 2.0], "<f4").tobytes()
    with pytest.raises(UserError, match="datum 0: weights: the shape"):
        passes.decode_forward_backward(
            make_message(dense=dense, dtype=pb.DTYPE_FLOAT32, shape=shape)
        )


def test_bfloat16_is_widened_exactly() -> None:
    values = np.array([1.0, -2.5], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    body = make_message(dense=upper, dtype=pb.DTYPE_BFLOAT16)
    _, _, request = passes.decode_forward_backward(body)
    assert request.data[0].inputs["weights"].tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"dense": b"12345", "dtype": pb.DTYPE_FLOAT32}, "5 bytes are no whole number"),
        ({"dense": b"1234"}, "dtype is unknown"),
        ({"dense": b"1234", "dtype": 77}, "dtype is unknown"),
        ({"dense": b"1234", "dtype": pb.DTYPE_FLOAT32, "shape": [2]}, "does not hold 1 values"),
        ({"dense": b"1234", "dtype": pb.DTYPE_FLOAT32, "shape": [-1]}, "does not hold 1 values"),
        ({"dtype": pb.DTYPE_FLOAT32, "shape": [0, 2**62]}, "does not hold 0 values"),
    ],
)
def test_a_bad_tensor_is_refused_by_name(tensor: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"datum 0: weights: .*{complaint}"):
        passes.decode_forward_backward(make_message(**tensor))


def test_garbage_is_no_request() -> None:
    with pytest.raises(UserError, match="not a ForwardBackwardRequest"):
        passes.decode_forward_backward(b"\xff\xfe garbage")


def test_zstd_is_unpacked() -> None:
    assert passes.decompress(zstandard.compress(b"abc"), "zstd") == b"abc"
    assert passes.decompress(b"abc", "") == b"abc"


def test_a_zstd_bomb_is_refused() -> None:
    bomb = zstandard.compress(bytes(passes.MAX_BODY_BYTES + 1))
    assert len(bomb) < 10_000
    with pytest.raises(UserError, match="unpacks to more than 64 MiB"):
        passes.decompress(bomb, "zstd")


def test_a_broken_or_unknown_compression_is_refused() -> None:
    with pytest.raises(UserError, match="not valid zstd"):
        passes.decompress(b"not zstd at all", "zstd")
    with pytest.raises(UserError, match="gzip is not read here"):
        passes.decompress(b"", "gzip")


def test_an_output_comes_back_as_it_was() -> None:
    logprobs = [np.array([-0.5, -1.5], np.float32), np.array([-2.0], np.float32)]
    output = ForwardBackwardOutput(logprobs=logprobs, metrics={"loss:sum": 4.0})
    decoded = passes.decode_output(passes.encode_output(output))
    assert [values.tolist() for values in decoded.logprobs] == [[-0.5, -1.5], [-2.0]]
    assert decoded.metrics == {"loss:sum": 4.0}


def test_an_output_of_several_shapes_is_a_record_a_series() -> None:
    shapes: list[tuple[int, ...]] = [(4,), (2, 3), (5, 3), (1, 2), (2,)]
    logprobs = [np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes]
    body = passes.encode_output(ForwardBackwardOutput(logprobs=logprobs, metrics={"loss:sum": 0.0}))
    records = pb.ForwardBackwardOutput.FromString(body).loss_fn_outputs
    assert [record.num_datums for record in records] == [1, 2, 1, 1]
    trailing = [list(record.fields["logprobs"].trailing_shape) for record in records]
    assert trailing == [[], [3], [2], []]
    for left, right in zip(passes.decode_output(body).logprobs, logprobs, strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


def test_routes_of_a_datum_and_vectors_of_an_output_come_back_as_they_were() -> None:
    ids = np.arange(3)
    routes = np.array([[[0, 1]], [[FREE, FREE]], [[300, 2]]])
    datum = Datum(tokens=ids, inputs={"target_tokens": ids}, routes=routes)
    plain = Datum(tokens=ids, inputs={"target_tokens": ids})
    body = passes.encode_forward_backward("m", 1, ForwardBackward(data=[datum, plain]))
    _, _, request = passes.decode_forward_backward(body)
    assert request.data[0].routes is not None
    np.testing.assert_array_equal(request.data[0].routes, routes)
    assert request.data[1].routes is None
    vectors = [np.ones(4, np.float32), np.zeros(4, np.float32)]
    output = ForwardBackwardOutput(
        logprobs=[np.zeros(0, np.float32)] * 2, metrics={"loss:sum": 1.0}, vectors=vectors
    )
    found = passes.decode_output(passes.encode_output(output))
    assert found.vector_name == "embedding"
    np.testing.assert_array_equal(found.vectors or (), vectors)
    assert [len(each) for each in found.logprobs] == [0, 0]


def test_routes_that_fit_no_position_are_refused() -> None:
    message = pb.ForwardBackwardRequest()
    message.data.add().routes.ids = b"abc"
    with pytest.raises(UserError, match="datum 0: routes: 3 bytes are no whole number"):
        passes.decode_forward_backward(message.SerializeToString())
