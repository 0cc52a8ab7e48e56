"""Routes as texts: what comes back, and what is no routing matrix."""

import base64

import numpy as np
import pytest

from training.errors import InvalidInput
from training.routing import FREE, decode_routes, encode_routes


@pytest.mark.parametrize("num_experts", [4, 127, 128, 300])
def test_routes_come_back_as_they_were_with_free_positions_as_empty_texts(num_experts: int) -> None:
    routes = np.random.default_rng(1).integers(0, num_experts, (5, 3, 2))
    routes[4, 0, 0] = num_experts - 1
    routes[1] = FREE
    routes[2, 1] = FREE
    texts = encode_routes(routes)
    assert texts[1] == ""
    assert all(texts[:1] + texts[2:])
    found = decode_routes(texts)
    assert found is not None
    np.testing.assert_array_equal(found, routes)


def test_no_routes_anywhere_are_none() -> None:
    assert decode_routes(["", ""]) is None
    assert decode_routes([]) is None
    assert encode_routes(np.zeros((0, 3, 2), np.int64)) == []


def spell(*numbers: int) -> str:
    return base64.b64encode(bytes(numbers)).decode()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not base64", "position 1 is not base64"),
        ("é", "position 1 is not base64"),
        (7, "position 1 is no text"),
        (spell(1, 2), "position 1 is no routing matrix"),
        (spell(1, 2, 0), "position 1 is no routing matrix"),
        (spell(3, 2, 0, 0), "position 1 is no routing matrix"),
        (spell(1, 0, 0, 0), "position 1 is no routing matrix"),
        (spell(1, 2, 0, 1), r"position 1 has the shape \(1, 2\), others \(2, 2\)"),
    ],
)
def test_what_is_no_routing_matrix_is_named_by_its_position(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        decode_routes([spell(1, 2, 0, 1, 2, 3), text])
