"""Runs a checked custom loss, datum by datum, and finds the slopes of its log-probabilities.

It runs on the CPU whatever the model runs on: the numbers are few, and there an index out of range
is an error of one loss, where on a GPU it would end the process and everybody's runs with it.
"""

import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from training.allowlist import FUNCTIONS, METHODS, PAIR_ATTRIBUTES
from training.engine.costs import MAX_ITEMS, count, find_tensors
from training.engine.sizes import RULES
from training.errors import InvalidInput
from training.graphs import (
    LARGEST_INT,
    MAX_CALLS,
    Argument,
    CustomLoss,
    Device,
    DType,
    Many,
    Node,
    Ref,
    Span,
)
from training.types import Datum, FloatArray

NODE_ELEMENTS = 2**22  # of one call's result
DATUM_ELEMENTS = 2**26  # of all results of one datum, which its gradient needs together
REQUEST_WORK = 2**30  # elements that all calls of a request may read and write
CALL_WORK = REQUEST_WORK // MAX_CALLS  # elements that take as long as a call does by itself

# What torch and Python raise where a loss asks for what cannot be computed.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(slots=True, kw_only=True)
class Meter:
    """What the losses of one request have cost so far."""

    work: int = 0
    elements: int = 0  # of the datum that is being computed

    def spend(self, elements: int, work: int) -> None:
        self.elements += elements
        self.work += work
        if self.elements > DATUM_ELEMENTS:
            raise InvalidInput(
                f"the loss of one datum makes more than {DATUM_ELEMENTS} numbers: shorten the"
                " sequence or the loss"
            )
        if self.work > REQUEST_WORK:
            raise InvalidInput(
                "the losses of this request compute too much: send fewer datums in one request"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One datum's loss, its metrics, and the loss's derivative by each log-probability."""

    loss: float
    metrics: Mapping[str, float]
    slopes: FloatArray  # of the log-probabilities' shape; zeros where none were asked for


@dataclass(slots=True, kw_only=True)
class Frame:
    """The values of one datum's nodes."""

    meter: Meter
    values: dict[str, Any] = field(default_factory=dict)

    def run(self, node: Node) -> None:
        try:
            self.values[node.name] = self.call(node)
        except REFUSALS as error:
            raise InvalidInput(f"node {node.name} ({node.target}): {shorten(error)}") from None

    def call(self, node: Node) -> Any:
        args = [self.resolve(argument) for argument in node.args]
        kwargs = {key: self.resolve(argument) for key, argument in node.kwargs.items()}
        if node.op == "call_method":
            check_receiver(args[0], node.target)
        cost = RULES[node.allowed.rule](args, kwargs)
        if cost.elements > NODE_ELEMENTS:
            raise InvalidInput(
                f"its result would have {cost.elements} numbers, the most is {NODE_ELEMENTS}"
            )
        self.meter.spend(0, cost.work + CALL_WORK)
        value = CALLS[node.op][node.target](*args, **kwargs)
        made = check_value(value)
        if made > NODE_ELEMENTS:  # without an element to it, or nothing would have been made
            raise InvalidInput(f"its result has dimensions for {made} numbers")
        self.meter.spend(made, made + sum(map(count, find_tensors(args, kwargs))))
        return value

    def resolve(self, argument: Argument) -> Any:
        if isinstance(argument, Ref):
            return self.values[argument.name]
        if isinstance(argument, Many):
            items = [self.resolve(item) for item in argument.items]
            return tuple(items) if argument.is_tuple else items
        if isinstance(argument, Span):
            return slice(*map(self.resolve, (argument.start, argument.stop, argument.step)))
        if isinstance(argument, DType):
            return getattr(torch, argument.name)
        return torch.device("cpu") if isinstance(argument, Device) else argument

    def read_scalar(self, name: str, what: str) -> float:
        value = self.values[name]
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, int | float):
            raise InvalidInput(f"{what} is no number and no tensor of one")
        return float(value)


def judge(
    loss: CustomLoss, datum: Datum, logprobs: FloatArray, meter: Meter, *, with_slopes: bool
) -> Judged:
    """Raises InvalidInput, which names the node, where the loss cannot be computed."""
    meter.elements = 0
    own = torch.from_numpy(logprobs.copy()).requires_grad_(with_slopes)
    frame = Frame(meter=meter)
    frame.values[loss.parameters[0]] = own
    for parameter, needed in zip(loss.parameters[1:], loss.inputs[1:], strict=True):
        array = datum.inputs[needed.name]
        shape = array.shape if needed.rank else ()
        frame.values[parameter] = torch.from_numpy(np.array(array).reshape(shape))
    with torch.set_grad_enabled(with_slopes), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers taken from tensors, as the client takes them
        for node in loss.nodes:
            frame.run(node)
        return finish(loss, frame, own, with_slopes=with_slopes)


def finish(loss: CustomLoss, frame: Frame, own: torch.Tensor, *, with_slopes: bool) -> Judged:
    total = frame.values[loss.loss]
    if not isinstance(total, torch.Tensor) or total.ndim:
        shape = tuple(total.shape) if isinstance(total, torch.Tensor) else type(total).__name__
        raise InvalidInput(f"the loss is {shape}: return a tensor without dimensions")
    value = frame.read_scalar(loss.loss, "the loss")
    if not math.isfinite(value):
        raise InvalidInput(f"the loss is {value}, not a finite number")
    metrics = {key: frame.read_scalar(name, key) for key, name in loss.metrics.items()}
    slopes = find_slopes(total, own) if with_slopes else torch.zeros_like(own)
    return Judged(loss=value, metrics=metrics, slopes=slopes.detach().numpy())


def find_slopes(total: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if not total.requires_grad:
        raise InvalidInput("the loss does not depend on logprobs, so there is nothing to train on")
    try:
        (slopes,) = torch.autograd.grad(total, own)
    except REFUSALS as error:
        raise InvalidInput(f"the loss has no gradient: {shorten(error)}") from None
    if not bool(slopes.isfinite().all()):
        raise InvalidInput("the gradient of the loss by logprobs is not finite")
    return slopes


def shorten(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def check_receiver(value: Any, method: str) -> None:
    if not isinstance(value, torch.Tensor) and not (
        isinstance(value, torch.Size) and method == "numel"
    ):
        raise InvalidInput(f"it is called on a {type(value).__name__}, not on a tensor")


def check_value(value: Any) -> int:
    """How many elements it has. Only what a graph may go on with comes out of a call."""
    if isinstance(value, torch.Tensor):
        if value.dtype.is_complex or value.layout != torch.strided:
            raise InvalidInput("complex and sparse tensors are not allowed in a custom loss")
        return count(value)
    if isinstance(value, tuple | list):
        if len(value) > MAX_ITEMS:
            raise InvalidInput(f"it makes {len(value)} values; at most {MAX_ITEMS} are made here")
        return sum(map(check_value, value))
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise InvalidInput("a whole number is out of range")
    if not isinstance(value, int | float | torch.dtype | torch.device):
        raise InvalidInput(f"a {type(value).__name__} is not allowed in a custom loss")
    return 0


def read_attribute(value: Any, name: str) -> Any:
    if name in PAIR_ATTRIBUTES:
        is_pair = isinstance(value, tuple) and type(value).__module__ == "torch.return_types"
    else:
        is_pair = isinstance(value, torch.Tensor)
    if not is_pair:
        raise InvalidInput(f"a {type(value).__name__} has no attribute {name}")
    return getattr(value, name)


def read_numel(value: torch.Tensor | torch.Size) -> int:
    return value.numel()


def stay(value: torch.Tensor, *_: Any) -> torch.Tensor:
    """Values of a loss are on the CPU, wherever it wants them."""
    return value


def convert(value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`to`, which may name a device too."""
    wanted = [each for each in args if isinstance(each, torch.dtype | torch.Tensor)]
    if not wanted and not kwargs:
        return value
    return torch.Tensor.to(value, *wanted, **kwargs)  # type: ignore[no-any-return,call-overload]


def compute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of `math`: a tensor of one element is a number there."""

    def call(*args: Any) -> Any:
        return function(*map(read_plain, args))

    return call


def read_plain(value: Any) -> Any:
    """Of lists too: Python would multiply tensors in one, and each product could be larger."""
    if isinstance(value, tuple | list):
        return [read_plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise InvalidInput("math works on single numbers; torch has the same for tensors")
        return value.item()
    return value


def find_function(target: str) -> Callable[..., Any]:
    module, _, path = target.partition(".")
    if module == "math":
        return compute(getattr(math, path))
    if module == "operator":
        return getattr(operator, path)  # type: ignore[no-any-return]
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


CALLS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "call_function": {
        **{target: find_function(target) for target in FUNCTIONS if target != "getattr"},
        "getattr": read_attribute,
    },
    "call_method": {
        **{name: getattr(torch.Tensor, name) for name in METHODS},
        "cpu": stay,
        "cuda": stay,
        "numel": read_numel,
        "to": convert,
    },
}
