"""A custom loss as the Tinker wire brings it: a traced graph, decoded and checked. No torch.

Nothing here runs anything. A graph that comes out names only what `training.allowlist` lists,
refers only backwards and is bounded; `training.engine.traced` runs it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, Literal, NoReturn

from training.allowlist import (
    ATTRIBUTES,
    DEFAULTS,
    DTYPES,
    FUNCTIONS,
    IGNORED,
    KEYWORDS,
    METHODS,
    PAIR_ATTRIBUTES,
    Op,
    explain,
)
from training.errors import InvalidInput

MAX_NODES = 2000
MAX_ARGUMENTS = 20_000  # of all nodes together, counted one by one
MAX_DEPTH = 6  # of lists, tuples and slices in each other
MAX_INPUTS = 16
MAX_METRICS = 64
MAX_TEXT = 200
CALLS_A_TOKEN = 16  # calls that take as long as a token of a pass, on a device of today
MAX_CALLS = 2**19  # of all datums of one request: seconds, on one core
LARGEST_INT = 2**63 - 1

_INPUT_NAME = re.compile("[a-z_][a-z0-9_]{0,63}")
_NODE_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,199}")
_METRIC = re.compile("custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_NODE_KEYS = frozenset({"op", "name", "target", "args", "kwargs"})
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_CONSTANTS = {"layout": ("strided",), "memory_format": ("contiguous_format", "preserve_format")}


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an earlier node."""

    name: str


@dataclass(frozen=True, slots=True)
class DType:
    name: str


@dataclass(frozen=True, slots=True)
class Device:
    """Whatever the client called it: values live where the loss runs."""


@dataclass(frozen=True, slots=True)
class Many:
    """Torch tells lists and tuples apart when it indexes with them."""

    items: tuple["Argument", ...]
    is_tuple: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A slice."""

    start: "Argument"
    stop: "Argument"
    step: "Argument"


Argument = None | bool | int | float | str | EllipsisType | Ref | DType | Device | Many | Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One call. A method's first argument is what it is called on."""

    op: Literal["call_function", "call_method"]
    name: str
    target: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument]

    @property
    def allowed(self) -> Op:
        return (FUNCTIONS if self.op == "call_function" else METHODS)[self.target]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInput:
    """`logprobs`, or a loss_fn_input that every datum brings, with its number of dimensions."""

    name: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomLoss:
    """A checked graph: `loss(logprobs, *inputs) -> scalar, metrics`, for one datum."""

    name: str
    inputs: Sequence[LossInput]  # logprobs first
    parameters: Sequence[str]  # the inputs' names inside the graph
    nodes: Sequence[Node]
    loss: str
    metrics: Mapping[str, str] = field(default_factory=dict)


def read_custom_loss(*, name: str, inputs: Any, graph: Any) -> CustomLoss:
    """From decoded JSON, whatever it is. Raises InvalidInput, which names the node."""
    if not 1 <= len(name) <= MAX_TEXT:
        raise InvalidInput(f"name has {len(name)} characters: give the loss from 1 to {MAX_TEXT}")
    declared = _read_inputs(inputs)
    if not isinstance(graph, dict) or graph.get("format") != 1 or set(graph) != {"format", "nodes"}:
        raise InvalidInput("graph is not of format 1: send its format and its nodes")
    nodes = graph["nodes"]
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES:
        count = len(nodes) if isinstance(nodes, list) else "no"
        raise InvalidInput(f"graph has {count} nodes: a custom loss has from 1 to {MAX_NODES}")
    return GraphReader().read(name, declared, nodes)


def _read_inputs(inputs: Any) -> list[LossInput]:
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidInput(f"inputs is no list of 1 to {MAX_INPUTS} inputs, logprobs first")
    declared = [_read_input(value, index) for index, value in enumerate(inputs)]
    names = [each.name for each in declared]
    if names[0] != "logprobs" or len(set(names)) != len(names):
        raise InvalidInput("inputs do not begin with logprobs, or name one twice")
    if declared[0].rank == 0:
        raise InvalidInput("inputs: logprobs has rank 1 or 2")
    return declared


def _read_input(value: Any, index: int) -> LossInput:
    if not isinstance(value, dict) or set(value) != {"name", "rank"}:
        raise InvalidInput(f"inputs[{index}] is no object of a name and a rank")
    name, rank = value["name"], value["rank"]
    if not isinstance(name, str) or not _INPUT_NAME.fullmatch(name):
        raise InvalidInput(f"inputs[{index}]: {name!r:.80} is no lowercase name")
    if type(rank) is not int or rank not in (0, 1, 2):
        raise InvalidInput(f"inputs[{index}]: the rank of {name} is {rank!r:.80}: send 0, 1 or 2")
    return LossInput(name=name, rank=rank)


class GraphReader:
    """Reads the nodes in their order, and knows the names that came before."""

    def __init__(self) -> None:
        self.where = ""
        self.names: set[str] = set()
        self.num_arguments = 0

    def read(self, name: str, inputs: Sequence[LossInput], values: Sequence[Any]) -> CustomLoss:
        parameters: list[str] = []
        nodes: list[Node] = []
        for index, value in enumerate(values[:-1]):
            op, node_name = self.open(value, index)
            if op == "placeholder":
                self.check_parameter(value, inputs, len(parameters), is_early=not nodes)
                parameters.append(node_name)
            elif op in ("call_function", "call_method"):
                nodes.append(self.read_call(value, op, node_name))
            else:
                self.refuse(f"{op} is not allowed in a custom loss")
            self.names.add(node_name)
        if len(parameters) != len(inputs):
            raise InvalidInput(f"graph has {len(parameters)} parameters, inputs {len(inputs)}")
        loss, metrics = self.read_output(values[-1], len(values) - 1)
        return CustomLoss(
            name=name, inputs=inputs, parameters=parameters, nodes=nodes, loss=loss, metrics=metrics
        )

    def open(self, value: Any, index: int) -> tuple[str, str]:
        """Op and name of a node that is an object of the right keys."""
        self.where = f"node {index}"
        if not isinstance(value, dict) or not {"op", "name", "target"} <= set(value) <= _NODE_KEYS:
            self.refuse(f"it is no object of {', '.join(sorted(_NODE_KEYS))}")
        op, name, target = value["op"], value["name"], value["target"]
        if not isinstance(name, str) or not _NODE_NAME.fullmatch(name):
            self.refuse(f"{name!r:.80} is no name")
        self.where = f"node {name:.80}"
        if name in self.names:
            self.refuse("the name is used twice")
        if not isinstance(op, str) or not isinstance(target, str) or len(target) > MAX_TEXT:
            self.refuse("its op and its target are no short strings")
        if not isinstance(value.get("args", []), list):
            self.refuse("its args are no list")
        if not isinstance(value.get("kwargs", {}), dict):
            self.refuse("its kwargs are no object")
        return op, name

    def check_parameter(
        self, value: Mapping[str, Any], inputs: Sequence[LossInput], place: int, *, is_early: bool
    ) -> None:
        target = value["target"]
        if not is_early or place >= len(inputs) or target != inputs[place].name:
            self.refuse(f"the parameter {target!r:.80} is not the next one of inputs")
        if value.get("args") or value.get("kwargs"):
            self.refuse("a parameter has no default")

    def read_call(self, value: Mapping[str, Any], op: Any, name: str) -> Node:
        target = value["target"]
        allowed = (FUNCTIONS if op == "call_function" else METHODS).get(target)
        if allowed is None:
            self.refuse(f"{target!r:.120} is not allowed in a custom loss{explain(target)}")
        args = tuple(self.read_argument(each) for each in value.get("args", []))
        node = Node(
            op=op, name=name, target=target, args=args, kwargs=self.read_keywords(value, target)
        )
        self.check_call(node, allowed)
        return node

    def check_call(self, node: Node, allowed: Op) -> None:
        if allowed.most_args is not None and len(node.args) > allowed.most_args:
            self.refuse(f"{node.target} takes its options by name, and never in place")
        if node.op == "call_method" and not (node.args and isinstance(node.args[0], Ref)):
            self.refuse(f"the method {node.target} is not called on a value of the graph")
        if allowed.rule == "getattr":
            self.check_attribute(node)
        elif node.target.startswith(("operator.", "math.")) and (
            node.kwargs or any(isinstance(each, str) for each in node.args)
        ):
            self.refuse(f"{node.target} works on values of the graph and numbers alone")

    def check_attribute(self, node: Node) -> None:
        known = ATTRIBUTES | PAIR_ATTRIBUTES
        if len(node.args) != 2 or node.kwargs or not isinstance(node.args[0], Ref):
            self.refuse("getattr reads one attribute of a value of the graph")
        if not isinstance(node.args[1], str) or node.args[1] not in known:
            self.refuse(f"the attribute {node.args[1]!r:.80} is not allowed in a custom loss")

    def read_keywords(self, value: Mapping[str, Any], target: str) -> dict[str, Argument]:
        read = {}
        for key, given in value.get("kwargs", {}).items():
            if key in DEFAULTS:
                if given is not None and given is not False:
                    self.refuse(f"{target} with {key} is not allowed in a custom loss")
            elif key in IGNORED:
                self.read_argument(given)
            elif key in KEYWORDS:
                read[key] = self.read_argument(given)
            else:
                self.refuse(f"{target} with {key!r:.80} is not allowed in a custom loss")
        return read

    def read_argument(self, value: Any, depth: int = 0) -> Argument:
        self.num_arguments += 1
        if self.num_arguments > MAX_ARGUMENTS:
            self.refuse(f"the graph has more than {MAX_ARGUMENTS} arguments")
        if depth > MAX_DEPTH:
            self.refuse(f"its arguments are nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            return Many(tuple(self.read_argument(each, depth + 1) for each in value), False)
        if isinstance(value, dict):
            return self.read_object(value, depth)
        return self.read_literal(value)

    def read_literal(self, value: Any) -> bool | int | float | str | None:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) <= LARGEST_INT:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            return value
        self.refuse(f"the argument {value!r:.80} is out of range")

    def read_object(self, value: Mapping[str, Any], depth: int) -> Argument:
        if len(value) != 1:
            self.refuse("an argument that is an object has one key")
        ((kind, inner),) = value.items()
        if kind == "tuple" and isinstance(inner, list):
            return Many(tuple(self.read_argument(each, depth + 1) for each in inner), True)
        if kind == "slice" and isinstance(inner, list) and len(inner) == 3:
            return Span(*(self.read_argument(each, depth + 1) for each in inner))
        return self.read_name(kind, inner)

    def read_name(self, kind: str, inner: Any) -> Argument:
        if kind == "ref" and isinstance(inner, str):
            if inner not in self.names:
                self.refuse(f"it refers to {inner!r:.80}, which no node before it is named")
            return Ref(inner)
        if kind == "ellipsis" and inner is True:
            return ...
        if not isinstance(inner, str):
            self.refuse(f"the argument {{{kind!r:.80}: {inner!r:.80}}} cannot be read")
        return self.read_constant(kind, inner)

    def read_constant(self, kind: str, inner: str) -> Argument:
        if kind == "float" and inner in _FLOATS:
            return _FLOATS[inner]
        if kind == "dtype" and inner in DTYPES:
            return DType(inner)
        if kind == "device":
            return Device()
        if inner in _CONSTANTS.get(kind, ()):
            return None
        self.refuse(f"the {kind:.40} {inner!r:.80} is not allowed in a custom loss")

    def read_output(self, value: Any, index: int) -> tuple[str, dict[str, str]]:
        op, _ = self.open(value, index)
        if op != "output" or value.get("kwargs"):
            self.refuse("a graph ends with its output, and with nothing else")
        returned = value.get("args", [])
        pair = returned[0] if len(returned) == 1 else None
        parts = pair.get("tuple") if isinstance(pair, dict) and set(pair) == {"tuple"} else pair
        if not isinstance(parts, list) or len(parts) != 2:
            self.refuse("a custom loss returns its loss and a dict of metrics")
        loss, metrics = parts
        named = metrics.get("dict") if isinstance(metrics, dict) and len(metrics) == 1 else None
        if not isinstance(named, dict) or len(named) > MAX_METRICS:
            self.refuse(f"a custom loss returns a dict of at most {MAX_METRICS} metrics")
        return self.read_result(loss, "loss"), self.read_metrics(named)

    def read_metrics(self, named: Mapping[str, Any]) -> dict[str, str]:
        for key in named:
            if not _METRIC.fullmatch(key):
                self.refuse(
                    f"the metric {key!r:.100} is not named custom/<name>:sum or"
                    " custom/<name>:mean, in lowercase"
                )
        return {key: self.read_result(value, key) for key, value in named.items()}

    def read_result(self, value: Any, what: str) -> str:
        read = self.read_argument(value)
        if not isinstance(read, Ref):
            self.refuse(f"{what} is no value of the graph")
        return read.name

    def refuse(self, why: str) -> NoReturn:
        raise InvalidInput(f"{self.where}: {why}")
