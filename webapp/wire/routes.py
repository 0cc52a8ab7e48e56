"""Routes in Hone's own fields of the protobuf messages, in which they are stored."""

import numpy as np

from training.types import IntArray
from webapp.core.errors import UserError
from webapp.wire import wire_pb2 as pb


def write_routes(routes: IntArray) -> pb.Routes:
    _, layers, chosen = routes.shape
    return pb.Routes(ids=routes.astype("<i2").tobytes(), layers=layers, chosen=chosen)


def read_routes(message: pb.Routes, where: str) -> IntArray:
    size = 2 * message.layers * message.chosen
    if not size or len(message.ids) % size:
        raise UserError(f"{where}: {len(message.ids)} bytes are no whole number of positions.")
    ids = np.frombuffer(message.ids, "<i2").astype(np.int64)
    return ids.reshape(-1, message.layers, message.chosen)
