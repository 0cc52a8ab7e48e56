"""Whatever a client sends as a graph: a checked graph or a sentence, and a bounded run of it."""

import json
import math
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.engine.test_traced import make_datum, make_logprobs
from tests.training.tracing import LOGPROBS, WEIGHTS, call, call_method, make_graph, write_inputs
from training.allowlist import ATTRIBUTES, DTYPES, FUNCTIONS, KEYWORDS, METHODS
from training.engine.sizes import RULES
from training.engine.traced import NODE_ELEMENTS, Frame, Meter, check_value, judge
from training.errors import InvalidInput
from training.graphs import CustomLoss, GraphReader, Node, read_custom_loss

slow_to_draw = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def fuzz(number: int) -> settings:
    return settings(max_examples=number, suppress_health_check=slow_to_draw)


INPUTS = write_inputs(logprobs=1, weights=1)

# Values of several shapes and types, for calls to be tried on.
STOCK = {
    "index": call("torch.arange", 3),
    "tall": call_method("reshape", WEIGHTS, 4, 3),
    "three": call("torch.ones", 3),
    "wide_mask": call("torch.ones", 1, 4, dtype={"dtype": "bool"}),
    "batch": call("torch.ones", 2, 3, 3),
    "positive": call_method("sigmoid", WEIGHTS),
    "matrix": call_method("reshape", LOGPROBS, 3, 4),
    "column": call_method("reshape", WEIGHTS, 12, 1),
    "cube": call("torch.full", {"tuple": [2, 3, 2]}, 1.5),
    "whole": call_method("long", WEIGHTS),
    "mask": call("operator.gt", WEIGHTS, 0),
    "total": call_method("sum", LOGPROBS),
    "nothing": call("torch.zeros", 0),
    "wide": call("torch.ones", 1, 4),
    "double": call_method("double", LOGPROBS),
    "large": call("torch.full", [2, 2], 2**62),
    "not_finite": call("torch.full", [3], {"float": "-inf"}),
    "shape": call("getattr", LOGPROBS, "shape"),
    "pair": call("torch.sort", LOGPROBS),
}
NAMES = ["logprobs", "weights", *STOCK]
LAST = call("torch.sum", LOGPROBS)

numbers = st.one_of(
    st.integers(-4, 13),
    st.sampled_from([10**3, 10**6, 10**9, 2**62, -(2**62), 2**63 - 1]),
    st.floats(-3, 3),
    st.sampled_from([{"float": "inf"}, {"float": "nan"}, 1e300, 1e-300]),
)
atoms = st.one_of(
    st.sampled_from(NAMES).map(lambda name: {"ref": name}),
    numbers,
    st.booleans(),
    st.none(),
    st.sampled_from(sorted(DTYPES)).map(lambda name: {"dtype": name}),
    st.sampled_from(["sum", "none", "mean", "i,j->ij", "ij,jk", "ii->i", "trunc", "fro", "nuc"]),
    st.just({"ellipsis": True}),
    st.just({"device": "cuda"}),
)
lists = st.lists(atoms, max_size=4)
arguments = st.one_of(
    atoms,
    lists,
    lists.map(lambda items: {"tuple": items}),
    st.lists(st.none() | st.integers(-5, 5), min_size=3, max_size=3).map(
        lambda parts: {"slice": parts}
    ),
)
keywords = st.dictionaries(
    st.sampled_from(sorted(KEYWORDS - {"mode"} | {"dim", "dtype"})), arguments, max_size=2
)
references = st.sampled_from(NAMES).map(lambda name: {"ref": name})


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Of something that is allowed, on something that may not fit it."""
    first = draw(references | arguments)
    rest = draw(st.lists(arguments, max_size=3))
    is_method = draw(st.booleans())
    if is_method:
        target = draw(st.sampled_from(sorted(METHODS)))
        return call_method(target, draw(references), *rest, **draw(keywords))
    target = draw(st.sampled_from(sorted(FUNCTIONS)))
    if target == "getattr":
        return call(target, draw(references), draw(st.sampled_from(sorted(ATTRIBUTES))))
    is_bare = target.startswith(("operator.", "math."))
    return call(target, first, *rest, **({} if is_bare else draw(keywords)))


def name_calls(*sent: dict[str, Any]) -> dict[str, Any]:
    stock = [{**each, "name": name} for name, each in STOCK.items()]
    tried = [{**each, "name": f"tried{index}"} for index, each in enumerate(sent)]
    return make_graph(*stock, *tried, LAST)


def read(graph: Any) -> CustomLoss:
    # What is not of JSON never comes here.
    return read_custom_loss(name="sent", inputs=INPUTS, graph=json.loads(json.dumps(graph)))


def run_bounded(frame: Frame, node: Node) -> bool:
    """Whether one call can be computed; holds its result to what was foreseen."""
    try:
        frame.run(node)
    except InvalidInput:
        return False
    value = frame.values[node.name]
    args = [frame.resolve(argument) for argument in node.args]
    kwargs = {key: frame.resolve(argument) for key, argument in node.kwargs.items()}
    foreseen = RULES[node.allowed.rule](args, kwargs).elements
    assert check_value(value) <= foreseen <= NODE_ELEMENTS, node
    return True


TENSORS = [{"ref": name} for name in NAMES if name not in ("shape", "pair")]
INTEGERS: list[Any] = [0, 1, -1, 2, 5, 10**9]
SHAPES: list[Any] = [
    *({"tuple": sizes} for sizes in ([], [2], [-1], [12], [3, 4], [1, 0], [0, 1, 2], [10**5] * 2)),
    [0, 2],
    [2, 0],
    {"slice": [1, None, 2]},
    {"tuple": [{"ellipsis": True}, None, 0]},
    {"tuple": [{"ref": "mask"}, None]},
    {"tuple": [{"ref": "index"}, {"ref": "index"}]},
]
OTHERS: list[Any] = [None, True, 0.5, {"float": "inf"}, {"dtype": "float64"}]
MATRIX, TALL, INDEX, MASK = ({"ref": name} for name in ("matrix", "tall", "index", "mask"))
CLASSES, POSITIVE, BATCH = ({"ref": name} for name in ("index", "positive", "batch"))
# By the last part of its name: what fits a call that few arguments fit.
FITTING: dict[str, list[Any]] = {
    "addcdiv": [LOGPROBS, WEIGHTS, POSITIVE],
    "addcmul": [LOGPROBS, WEIGHTS, POSITIVE],
    "binary_cross_entropy": [POSITIVE, POSITIVE],
    "bmm": [BATCH, BATCH],
    "cross_entropy": [MATRIX, CLASSES],
    "dot": [LOGPROBS, WEIGHTS],
    "einsum": ["ij,jk->ik", MATRIX, TALL],
    "full": [{"tuple": [3, 4]}, 1.0],
    "gather": [LOGPROBS, 0, INDEX],
    "gaussian_nll_loss": [LOGPROBS, WEIGHTS, POSITIVE],
    "gcd": [12, 18],
    "index_add": [LOGPROBS, 0, INDEX, {"ref": "three"}],
    "index_fill": [LOGPROBS, 0, INDEX, 1.0],
    "index_select": [MATRIX, 1, INDEX],
    "isqrt": [12],
    "kthvalue": [LOGPROBS, 2],
    "lerp": [LOGPROBS, WEIGHTS, 0.5],
    "linspace": [0, 1, 5],
    "margin_ranking_loss": [LOGPROBS, WEIGHTS, WEIGHTS],
    "masked_fill": [MATRIX, {"ref": "wide_mask"}, 0.0],
    "masked_select": [LOGPROBS, MASK],
    "matmul": [MATRIX, TALL],
    "mm": [MATRIX, TALL],
    "moveaxis": [MATRIX, 0, 1],
    "movedim": [MATRIX, 0, 1],
    "mv": [TALL, {"ref": "three"}],
    "narrow": [LOGPROBS, 0, 1, 3],
    "new_full": [LOGPROBS, {"tuple": [3, 4]}, 1.0],
    "nll_loss": [MATRIX, CLASSES],
    "one_hot": [CLASSES, 4],
    "prod": [{"ref": "shape"}],
    "scatter": [LOGPROBS, 0, INDEX, 1.0],
    "scatter_add": [LOGPROBS, 0, INDEX, {"ref": "three"}],
    "select": [MATRIX, 1, 2],
    "swapaxes": [MATRIX, 0, 1],
    "swapdims": [MATRIX, 0, 1],
    "_threshold": [LOGPROBS, 0.5, 1.0],
    "threshold": [LOGPROBS, 0.5, 1.0],
    "take": [LOGPROBS, INDEX],
    "take_along_dim": [LOGPROBS, INDEX, 0],
    "tensor_split": [LOGPROBS, 3],
    "transpose": [MATRIX, 0, 1],
    "unflatten": [LOGPROBS, 0, {"tuple": [3, 4]}],
    "where": [LOGPROBS, MASK, WEIGHTS],
}


def list_arguments(target: str) -> Iterator[list[Any]]:
    """Of every number and kind, and what is known to fit."""
    name = target.rpartition(".")[2]
    if name in FITTING:
        yield FITTING[name]
    if target == "getattr":
        yield from ([tensor, name] for tensor in TENSORS for name in sorted(ATTRIBUTES))
        return
    pool = [*TENSORS, *INTEGERS, *SHAPES, *OTHERS, 3, 2.5]
    yield from ([first] for first in pool)
    yield from ([[first, first]] for first in TENSORS)
    random = np.random.default_rng(zlib.crc32(target.encode()))
    for first in (LOGPROBS, MATRIX, MASK, {"ref": "whole"}, 3):
        yield from ([first, second] for second in pool)
        for _ in range(10):
            picked = random.integers(0, len(pool), 3)
            yield [first, *(pool[place] for place in picked[: random.integers(2, 4)])]


def decode(target: str, args: list[Any], op: str) -> Node | None:
    reader = GraphReader()
    reader.names = set(NAMES)
    value = {**call(target, *args), "op": op}
    try:
        return reader.read_call(value, op, "x")
    except InvalidInput:
        return None


@pytest.fixture(scope="module")
def frame() -> Frame:
    frame = Frame(meter=Meter())
    frame.values["logprobs"] = torch.from_numpy(make_logprobs()).requires_grad_()
    frame.values["weights"] = torch.from_numpy(make_datum().inputs["weights"])
    for node in read(name_calls()).nodes:
        frame.run(node)
    return frame


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Torch warns of much that a client may do; `judge` does not let that out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def try_calls(frame: Frame, target: str, op: str) -> int:
    """How many of its calls could be computed."""
    count = 0
    for args in list_arguments(target):
        frame.meter = Meter()
        node = decode(target, args, op)
        count += node is not None and run_bounded(frame, node)
    return count


@pytest.mark.parametrize("target", sorted(FUNCTIONS))
def test_a_function_makes_no_more_than_was_foreseen(frame: Frame, target: str) -> None:
    assert try_calls(frame, target, "call_function") > 0


@pytest.mark.parametrize("target", sorted(METHODS))
def test_a_method_makes_no_more_than_was_foreseen(frame: Frame, target: str) -> None:
    assert try_calls(frame, target, "call_method") > 0


@fuzz(200)
@given(calls(), calls(), calls(), st.booleans())
def test_a_graph_that_is_read_gives_a_finite_loss_or_a_sentence(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any], with_slopes: bool
) -> None:
    results = [{"ref": "tried0"}, {"ref": "tried1"}, {"ref": "tried2"}]
    graph = name_calls(first, second, third)
    graph["nodes"].insert(-1, {**call("torch.stack", results), "name": "all"})
    graph["nodes"].insert(-1, {**call("torch.sum", {"ref": "all"}), "name": "end"})
    graph["nodes"][-1]["args"] = [{"tuple": [{"ref": "end"}, {"dict": {}}]}]
    try:
        judged = judge(read(graph), make_datum(), make_logprobs(), Meter(), with_slopes=with_slopes)
    except InvalidInput:
        return
    assert math.isfinite(judged.loss)
    assert np.isfinite(judged.slopes).all()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)


@fuzz(300)
@given(st.text(max_size=300), json_values, json_values)
def test_any_json_is_a_graph_or_a_sentence(name: str, inputs: Any, graph: Any) -> None:
    with pytest.raises(InvalidInput):
        read_custom_loss(name=name, inputs=inputs, graph=graph)


places = st.sampled_from(["op", "name", "target", "args", "kwargs", "more"])


@fuzz(500)
@given(st.integers(0, 20), places, json_values | arguments, st.booleans())
def test_a_graph_with_one_thing_replaced_is_a_graph_or_a_sentence(
    index: int, place: str, value: Any, is_missing: bool
) -> None:
    graph = name_calls(call("torch.exp", LOGPROBS), call("torch.clamp", LOGPROBS, min=0.5))
    node = graph["nodes"][index % len(graph["nodes"])]
    node.pop(place, None)
    if not is_missing:
        node[place] = value
    try:
        loss = read_custom_loss(name="sent", inputs=INPUTS, graph=graph)
        judged = judge(loss, make_datum(), make_logprobs(), Meter(), with_slopes=True)
    except InvalidInput:
        return
    assert judged.slopes.shape == (12,)
