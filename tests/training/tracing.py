"""Python functions as the wire brings them: traced by torch.fx, and written as plain JSON."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.node import Node, _get_qualified_name

from training.graphs import CustomLoss, read_custom_loss

Loss = Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]


def write_argument(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": write_all(value)}
    return WRITERS.get(type(value), lambda plain: plain)(value)


def write_all(values: Iterable[Any]) -> list[Any]:
    return [write_argument(value) for value in values]


WRITERS: Mapping[type, Callable[[Any], Any]] = {
    Node: lambda value: {"ref": value.name},
    float: lambda value: value if math.isfinite(value) else {"float": str(value)},
    slice: lambda value: {"slice": write_all((value.start, value.stop, value.step))},
    EllipsisType: lambda _: {"ellipsis": True},
    list: write_all,
    torch.dtype: lambda value: {"dtype": str(value).removeprefix("torch.")},
    torch.device: lambda value: {"device": str(value)},
    torch.memory_format: lambda value: {"memory_format": str(value).removeprefix("torch.")},
    immutable_list: write_all,
    immutable_dict: lambda value: {
        "dict": {key: write_argument(each) for key, each in value.items()}
    },
}


def write_graph(loss: Loss) -> dict[str, Any]:
    nodes = []
    for node in torch.fx.symbolic_trace(loss).graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = _get_qualified_name(target).replace("_operator.", "operator.")
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": [write_argument(each) for each in node.args],
                "kwargs": {key: write_argument(each) for key, each in node.kwargs.items()},
            }
        )
    graph: dict[str, Any] = json.loads(json.dumps({"format": 1, "nodes": nodes}))
    return graph


def write_inputs(**ranks: int) -> list[dict[str, Any]]:
    return [{"name": name, "rank": rank} for name, rank in ranks.items()]


def trace(loss: Loss, **ranks: int) -> CustomLoss:
    """`ranks` of the parameters, `logprobs` first."""
    return read_custom_loss(name="traced", inputs=write_inputs(**ranks), graph=write_graph(loss))


def call(target: str, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Of a function, by a node whose name is x."""
    return {
        "op": "call_function",
        "name": "x",
        "target": target,
        "args": list(args),
        "kwargs": kwargs,
    }


def call_method(target: str, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {**call(target, *args, **kwargs), "op": "call_method"}


def make_graph(*calls: dict[str, Any], loss: str = "x") -> dict[str, Any]:
    """A graph of two parameters, `logprobs` and `weights`, as a client that is no SDK sends it."""
    parameters: list[dict[str, Any]] = [
        {"op": "placeholder", "name": name, "target": name, "args": [], "kwargs": {}}
        for name in ("logprobs", "weights")
    ]
    returned = {"tuple": [{"ref": loss}, {"dict": {}}]}
    output = {"op": "output", "name": "output", "target": "output", "args": [returned]}
    return {"format": 1, "nodes": [*parameters, *calls, {**output, "kwargs": {}}]}


def read_graph(*calls: dict[str, Any], loss: str = "x") -> CustomLoss:
    return read_custom_loss(
        name="sent",
        inputs=write_inputs(logprobs=1, weights=1),
        graph=make_graph(*calls, loss=loss),
    )


LOGPROBS = {"ref": "logprobs"}
WEIGHTS = {"ref": "weights"}
