"""Routes as clients carry them: a base64 text for each position, which names itself what it holds.

A text is two bytes, how many bytes an id takes and how many experts a layer chooses, and then the
ids of all layers. The empty text is a position whose layers choose by themselves.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.errors import InvalidInput
from training.types import IntArray

FREE = -1  # in a whole row of routes: this layer chooses for this token itself
WIDTHS: Mapping[int, np.dtype[Any]] = {1: np.dtype("<i1"), 2: np.dtype("<i2")}
NARROW = 127  # the highest expert that one byte holds beside FREE


def encode_routes(routes: IntArray) -> list[str]:
    """Of (N, L, k) N texts."""
    width = 1 if routes.max(initial=0) <= NARROW else 2
    head = bytes((width, routes.shape[2]))
    rows = routes.astype(WIDTHS[width])
    return [
        "" if (row == FREE).all() else base64.b64encode(head + row.tobytes()).decode()
        for row in rows
    ]


def decode_routes(texts: Sequence[str], where: str = "routing_matrices") -> IntArray | None:
    """(N, L, k); None where no position has any. InvalidInput says which text is none."""
    rows = [_decode(text, f"{where}: position {at}") for at, text in enumerate(texts)]
    known = next((row for row in rows if row is not None), None)
    if known is None:
        return None
    free = np.full(known.shape, FREE, np.int64)
    for at, row in enumerate(rows):
        if row is not None and row.shape != known.shape:
            raise InvalidInput(
                f"{where}: position {at} has the shape {row.shape}, others {known.shape}: all "
                "positions name experts of the same layers"
            )
    return np.stack([free if row is None else row for row in rows])


def _decode(text: object, where: str) -> IntArray | None:
    """(L, k)."""
    if not isinstance(text, str):
        raise InvalidInput(f"{where} is no text: send a routing matrix as it was sampled, or none")
    if not text:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{where} is not base64") from None
    width, num_chosen = (data[0], data[1]) if len(data) > 2 else (0, 0)
    if width not in WIDTHS or not num_chosen or (len(data) - 2) % (width * num_chosen):
        raise InvalidInput(f"{where} is no routing matrix that this server has given")
    return np.frombuffer(data[2:], WIDTHS[width]).reshape(-1, num_chosen).astype(np.int64)
