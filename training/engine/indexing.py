"""How many numbers an index of a custom loss chooses: see `training.engine.sizes`."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from training.engine.costs import (
    Args,
    Cost,
    Kwargs,
    broadcast_shapes,
    count,
    count_cells,
    find_option,
    find_tensors,
    list_tensors,
    read_whole,
    take_tensor,
)
from training.errors import InvalidInput


def index_select(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    dim = read_whole(find_option(args, kwargs, 1, "dim", 0))
    index = find_option(args, kwargs, 2, "index", None)
    size = tensor.shape[dim] if tensor.ndim else 1
    return Cost(count(tensor) // max(1, size) * max(map(count, list_tensors(index))))


def take(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(max(map(count, find_tensors(args, kwargs))))


def take_along_dim(args: Args, kwargs: Kwargs) -> Cost:
    tensors = find_tensors(args, kwargs)
    pairs = zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1)
    return Cost(count_cells(max(sizes) for sizes in pairs))


def getitem(args: Args, _kwargs: Kwargs) -> Cost:
    value, index = args
    if not isinstance(value, torch.Tensor):
        if not isinstance(value, tuple | list) or not isinstance(index, int | slice):
            raise InvalidInput("only tensors and tuples have items")
        return Cost(1 + sum(map(count, list_tensors(value))))
    items = index if isinstance(index, tuple) else (index,)
    return Cost(count_chosen(value.shape, items))


def count_chosen(shape: Sequence[int], items: Sequence[Any]) -> int:
    """What lists and tensors choose, times the dimensions that are left."""
    widths = [count_dimensions(item) for item in items]
    place, left, chosen = 0, 1, 1
    shapes: list[tuple[int, ...]] = [()]
    rest = max(0, len(shape) - sum(widths))
    for item, own in zip(items, widths, strict=True):
        width = rest if item is ... else own
        if item is ... or isinstance(item, slice):
            left *= count_cells(shape[place : place + width])
        elif is_mask(item):
            chosen = max(chosen, count_cells(shape[place : place + width]))
        elif isinstance(item, list):
            shapes.append((len(item),))
        elif isinstance(item, torch.Tensor):
            shapes.append(tuple(item.shape))
        place += width
    return left * chosen * count_cells(broadcast_shapes(*shapes)) * count_cells(shape[place:])


def is_mask(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dtype in (torch.bool, torch.uint8)


def count_dimensions(item: Any) -> int:
    """Of the tensor, that one item of an index uses up."""
    if isinstance(item, list):
        if not all(isinstance(each, int) for each in item):
            raise InvalidInput("a list that is an index holds whole numbers")
        return 1
    if isinstance(item, tuple):
        raise InvalidInput("a tuple in an index is not read here: use a list")
    if item is None or item is ... or isinstance(item, bool):
        return 0
    return item.ndim if is_mask(item) else 1
