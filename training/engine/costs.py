"""What a call of a custom loss costs, and how its arguments are read before it runs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from training.errors import InvalidInput
from training.graphs import LARGEST_INT

MAX_ITEMS = 4096  # of a list or a tuple

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


class Cost(NamedTuple):
    """`elements` that may come to exist at once, and `work` that is beyond them."""

    elements: int
    work: int = 0


Rule = Callable[[Args, Kwargs], Cost]


def list_tensors(*values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from list_tensors(*value)


def count_cells(shape: Iterable[int]) -> int:
    """Nothing in one dimension counts as one: a sum over it leaves all the others."""
    return math.prod(max(1, size) for size in shape)


def count(tensor: torch.Tensor) -> int:
    return count_cells(tensor.shape)


def find_tensors(args: Args, kwargs: Kwargs) -> list[torch.Tensor]:
    return list(list_tensors(*args, *kwargs.values()))


def read_whole(value: Any) -> int:
    """A number, or a tensor of one."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or abs(value) > LARGEST_INT:
        raise InvalidInput("a size is no whole number")
    return int(value)


def read_number(value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput("a bound is no finite number")
    return value


def read_sizes(args: Args, kwargs: Kwargs, *names: str) -> list[int]:
    """`(2, 3)`, `((2, 3),)` and `size=(2, 3)` are the same."""
    given = [*args, *(kwargs[name] for name in names if name in kwargs)]
    flat: list[Any] = []
    for value in given:
        flat.extend(value if isinstance(value, list | tuple) else [value])
    if len(flat) > 64:
        raise InvalidInput(f"{len(flat)} dimensions are too many")
    return [read_whole(value) for value in flat]


def find_option(args: Args, kwargs: Kwargs, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def take_tensor(args: Args, kwargs: Kwargs) -> torch.Tensor:
    """What the call works on."""
    value = find_option(args, kwargs, 0, "input", kwargs.get("tensor", kwargs.get("self")))
    if not isinstance(value, torch.Tensor):
        raise InvalidInput("it does not work on a tensor")
    return value


def broadcast_shapes(*shapes: Sequence[int]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
