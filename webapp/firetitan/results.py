"""Results of training passes as JSON, for clients that do not ask for protobuf."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from webapp.wire import wire_pb2 as pb


def write_json(result: bytes) -> bytes:
    message = pb.ForwardBackwardOutput.FromString(result)
    outputs = [tensors for record in message.loss_fn_outputs for tensors in list_datums(record)]
    answer = {
        "loss_fn_output_type": message.loss_fn_output_type,
        "loss_fn_outputs": outputs,
        "metrics": dict(message.metrics),
    }
    return json.dumps(answer).encode()


def list_datums(record: pb.ArrayRecord) -> list[dict[str, Any]]:
    datums: list[dict[str, Any]] = [{} for _ in range(record.num_datums)]
    for name, tensor in record.fields.items():
        for datum, values in zip(datums, cut_tensor(tensor), strict=True):
            datum[name] = values
    return datums


def cut_tensor(tensor: pb.BatchedTensor) -> Iterator[dict[str, Any]]:
    for start, end in pairwise(np.frombuffer(tensor.offsets, "<i8")):
        values = np.frombuffer(tensor.data[start:end], "<f4")
        shape = list(values.reshape(-1, *tensor.trailing_shape).shape)
        yield {"data": values.tolist(), "dtype": "float32", "shape": shape}
