"""How large the result of one call of a custom loss would be, known before anything is allocated.

One function for each rule of `training.allowlist`. Each returns an upper bound; a call that cannot
be bounded, or that would end the process, raises InvalidInput.
"""

import math
import re
from collections.abc import Mapping
from itertools import zip_longest

import torch

from training.engine.costs import (
    MAX_ITEMS,
    Args,
    Cost,
    Kwargs,
    Rule,
    broadcast_shapes,
    count,
    count_cells,
    find_option,
    find_tensors,
    list_tensors,
    read_number,
    read_sizes,
    read_whole,
    take_tensor,
)
from training.engine.indexing import getitem, index_select, take, take_along_dim
from training.errors import InvalidInput

SLACK = 16  # elements: a result may be small where nothing comes in
SLOW = 4  # times as slow as an exponential
SORTING = 16
PIECE = 1024  # elements that a tensor object costs as much as
MATMUL_SPEED = 8  # products are that much cheaper than other arithmetic
MAX_DIFF = 8  # repeats of diff


def look(_args: Args, _kwargs: Kwargs) -> Cost:
    return Cost(SLACK)


def inside(args: Args, kwargs: Kwargs) -> Cost:
    tensors = find_tensors(args, kwargs)
    return Cost(2 * sum(map(count, tensors)) + SLACK * (1 + len(tensors)))


def slow(args: Args, kwargs: Kwargs) -> Cost:
    cost = inside(args, kwargs)
    return Cost(cost.elements, SLOW * cost.elements)


def sorting(args: Args, kwargs: Kwargs) -> Cost:
    cost = inside(args, kwargs)
    return Cost(cost.elements, SORTING * cost.elements)


def broadcast(args: Args, kwargs: Kwargs) -> Cost:
    """One tensor alone is reduced, or looked through: then its dimensions count."""
    tensors = find_tensors(args, kwargs)
    if len(tensors) == 1:
        return Cost(count(tensors[0]) * max(2, tensors[0].ndim) + SLACK)
    shape = broadcast_shapes(*(tensor.shape for tensor in tensors))
    return Cost(2 * count_cells(shape) + SLACK)


def arithmetic(args: Args, kwargs: Kwargs) -> Cost:
    for value in args:
        if isinstance(value, tuple | list) or value is None:
            raise InvalidInput("it takes tensors and numbers only")
    return broadcast(args, kwargs)


def add(args: Args, kwargs: Kwargs) -> Cost:
    """Shapes may be joined."""
    if args and all(isinstance(value, tuple) for value in args):
        if sum(len(value) for value in args) > MAX_ITEMS:
            raise InvalidInput("the tuples are too long")
        return Cost(SLACK)
    return arithmetic(args, kwargs)


def quotient(args: Args, kwargs: Kwargs) -> Cost:
    check_division(args)
    return arithmetic(args, kwargs)


def division(args: Args, kwargs: Kwargs) -> Cost:
    check_division([*args, *kwargs.values()])
    return broadcast(args, kwargs)


def check_division(values: Args) -> None:
    """The smallest integer divided by -1 is a trap of the processor, which ends the process."""
    for value in values:
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            is_signed = value.dtype not in (torch.bool, torch.uint8)
            if is_signed and bool((value == torch.iinfo(value.dtype).min).any()):
                raise InvalidInput("it divides the smallest integer of its type")


def power(args: Args, kwargs: Kwargs) -> Cost:
    cost = broadcast(args, kwargs)
    return Cost(cost.elements, SLOW * cost.elements)


def raise_to(args: Args, kwargs: Kwargs) -> Cost:
    """Python's own integers grow without an end."""
    base, exponent = args
    are_whole = isinstance(base, int) and isinstance(exponent, int)
    if are_whole and base.bit_length() * abs(exponent) > 64:
        raise InvalidInput("the power of two whole numbers is out of range")
    arithmetic(args, kwargs)
    return power(args, kwargs)


def compute_number(args: Args, _kwargs: Kwargs) -> Cost:
    if sum(len(value) for value in args if isinstance(value, tuple | list)) > MAX_ITEMS:
        raise InvalidInput("too many numbers")
    return Cost(SLACK)


def matmul(args: Args, kwargs: Kwargs) -> Cost:
    tensors = find_tensors(args, kwargs)
    if len(tensors) != 2 or min(tensor.ndim for tensor in tensors) == 0:
        raise InvalidInput("a product takes two tensors with dimensions")
    left, right = (list(tensor.shape) for tensor in tensors)
    left = left if len(left) > 1 else [1, *left]
    right = right if len(right) > 1 else [*right, 1]
    batch = count_cells(broadcast_shapes(left[:-2], right[:-2]))
    rows, inner, columns = left[-2], left[-1], right[-1]
    elements = batch * rows * columns
    if batch > 1:  # an operand is repeated where only the other one has a batch
        elements += batch * (rows * inner + right[-2] * columns)
    return Cost(elements, batch * rows * inner * columns // MATMUL_SPEED)


def outer(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(math.prod(map(count, find_tensors(args, kwargs))))


def einsum(args: Args, _kwargs: Kwargs) -> Cost:
    """Of several operands, what is made on the way is bounded by all the indices together."""
    operands = list(list_tensors(*args[1:]))
    equation = args[0] if args and isinstance(args[0], str) else ""
    terms = re.sub(r"\s", "", equation).partition("->")[0].split(",")
    if not re.fullmatch("[A-Za-z,]*(->[A-Za-z]*)?", re.sub(r"\s", "", equation)):
        raise InvalidInput("the equation has more than letters, commas and an arrow")
    if [len(term) for term in terms] != [operand.ndim for operand in operands]:
        raise InvalidInput("the equation does not fit the dimensions of its operands")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for label, size in zip(term, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 0))
    space = count_cells(sizes.values())
    if len(operands) > 2:
        return Cost(space, space * len(operands))
    kept = equation.partition("->")[2] if "->" in equation else "".join(sizes)
    made = count_cells(sizes.get(label, 1) for label in set(kept.strip()))
    return Cost(made + sum(map(count, operands)), space // MATMUL_SPEED)


def nonzero(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    return Cost(count(tensor) * max(1, tensor.ndim))


def diff(args: Args, kwargs: Kwargs) -> Cost:
    if read_whole(find_option(args, kwargs, 1, "n", 1)) > MAX_DIFF:
        raise InvalidInput(f"it is repeated more than {MAX_DIFF} times")
    cost = inside(args, kwargs)
    return Cost(cost.elements, MAX_DIFF * cost.elements)


def diag(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    offset = read_whole(find_option(args, kwargs, 1, "diagonal", 0))
    return Cost((count(tensor) + abs(offset)) ** 2 if tensor.ndim == 1 else count(tensor))


def tile(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    repeats = read_sizes(args[1:], kwargs, "repeats", "dims", "sizes")
    return Cost(count(tensor) * count_cells(repeats))


def expand(args: Args, kwargs: Kwargs) -> Cost:
    """-1 keeps what is there."""
    tensor = take_tensor(args, kwargs)
    sizes = read_sizes(args[1:], kwargs, "size", "shape")
    own = reversed(tensor.shape)
    return Cost(
        count_cells(
            here if size == -1 else size
            for size, here in zip_longest(reversed(sizes), own, fillvalue=1)
        )
    )


def view(args: Args, kwargs: Kwargs) -> Cost:
    read_sizes(args[1:], kwargs, "size", "shape")  # it could be a type too, and other bits
    return inside(args, kwargs)


def create(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(count_cells(read_sizes(args, kwargs, "size")))


def create_like(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(count_cells(read_sizes(args[1:], kwargs, "size")))


def fill(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(count_cells(read_sizes(args[:1], kwargs, "size")))


def fill_like(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(count_cells(read_sizes(args[1:2], kwargs, "size")))


def arange(args: Args, kwargs: Kwargs) -> Cost:
    places = ("end",) if len(args) == 1 else ("start", "end", "step")
    given = {**dict(zip(places, args, strict=False)), **kwargs}
    start, end, step = (
        read_number(given.get(name, default))
        for name, default in (("start", 0), ("end", 0), ("step", 1))
    )
    if step == 0:
        raise InvalidInput("its step is 0")
    count = (end - start) / step
    if not math.isfinite(count):
        raise InvalidInput("it has no end")
    return Cost(max(0, math.ceil(count)) + 1)


def linspace(args: Args, kwargs: Kwargs) -> Cost:
    return Cost(count_cells((read_whole(find_option(args, kwargs, 2, "steps", 0)),)))


def eye(args: Args, kwargs: Kwargs) -> Cost:
    rows = read_whole(find_option(args, kwargs, 0, "n", 0))
    return Cost(count_cells((rows, read_whole(find_option(args, kwargs, 1, "m", rows)))))


def quantile(args: Args, kwargs: Kwargs) -> Cost:
    tensors = find_tensors(args, kwargs)
    elements = 2 * math.prod(map(count, tensors)) + SLACK
    return Cost(elements, SORTING * elements)


def repeat_interleave(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    repeats = find_option(args, kwargs, 1, "repeats", None)
    repeats = tensor if repeats is None else repeats  # of its own places, then
    if isinstance(repeats, torch.Tensor):
        most = read_whole(repeats.max()) if repeats.numel() else 0
    else:
        most = read_whole(repeats)
    return Cost(count(tensor) * max(1, most))


def count_pieces(tensor: torch.Tensor, pieces: int) -> Cost:
    if not 0 <= pieces <= MAX_ITEMS:
        raise InvalidInput(f"it makes {pieces} pieces; at most {MAX_ITEMS} are made here")
    return Cost(count(tensor) + SLACK, PIECE * pieces)


def split(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    size = find_option(args, kwargs, 1, "split_size_or_sections", kwargs.get("split_size"))
    if isinstance(size, list | tuple):
        return count_pieces(tensor, len(size))
    dim = read_whole(find_option(args, kwargs, 2, "dim", 0))
    return count_pieces(tensor, tensor.shape[dim] // max(1, read_whole(size)) + 1)


def chunk(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    names = ("chunks", "sections", "indices", "indices_or_sections")
    given = [*args[1:2], *(kwargs[name] for name in names if name in kwargs)]
    pieces = given[0] if given else 0
    if isinstance(pieces, list | tuple):
        return count_parts(tensor, len(pieces) + 1)
    if isinstance(pieces, torch.Tensor) and pieces.ndim:
        return count_parts(tensor, pieces.numel() + 1)
    return count_pieces(tensor, read_whole(pieces))


def count_parts(tensor: torch.Tensor, parts: int) -> Cost:
    """Between places that need not be in order: each part may be the whole."""
    cost = count_pieces(tensor, parts)
    return Cost(cost.elements * parts, cost.work)


def unbind(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    return count_pieces(tensor, tensor.shape[read_whole(find_option(args, kwargs, 1, "dim", 0))])


def broadcast_all(args: Args, kwargs: Kwargs) -> Cost:
    found = find_tensors(args, kwargs)
    shape = broadcast_shapes(*(tensor.shape for tensor in found))
    return Cost(len(found) * count_cells(shape))


def meshgrid(args: Args, kwargs: Kwargs) -> Cost:
    found = find_tensors(args, kwargs)
    return Cost(len(found) * math.prod(map(count, found)))


def one_hot(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    classes = read_whole(find_option(args, kwargs, 1, "num_classes", -1))
    if classes == -1:
        classes = read_whole(tensor.max()) + 1 if tensor.numel() else 1
    return Cost(count(tensor) * max(1, classes))


def pad(args: Args, kwargs: Kwargs) -> Cost:
    tensor = take_tensor(args, kwargs)
    widths = read_sizes([find_option(args, kwargs, 1, "pad", ())], {})
    pairs = zip_longest(reversed(tensor.shape), widths[::2], widths[1::2], fillvalue=0)
    return Cost(count_cells(size + max(0, before) + max(0, after) for size, before, after in pairs))


def norm(args: Args, kwargs: Kwargs) -> Cost:
    """Of vectors, or of a matrix taken as one: its other norms need all singular values."""
    tensor = take_tensor(args, kwargs)
    order = find_option(args, kwargs, 1, "p", kwargs.get("ord"))
    dim = find_option(args, kwargs, 2, "dim", None)
    is_vector = isinstance(dim, int) or tensor.ndim < 2
    if not is_vector and order not in (None, "fro"):
        raise InvalidInput("the norm of a matrix is its Frobenius norm here, or give one dim")
    return inside(args, kwargs)


RULES: Mapping[str, Rule] = {
    "arange": arange,
    "arithmetic": arithmetic,
    "broadcast": broadcast,
    "broadcast_to": expand,
    "chunk": chunk,
    "create": create,
    "create_like": create_like,
    "diag": diag,
    "diff": diff,
    "division": division,
    "einsum": einsum,
    "expand": expand,
    "expand_as": take,
    "exponent": raise_to,
    "eye": eye,
    "fill": fill,
    "fill_like": fill_like,
    "getattr": inside,
    "getitem": getitem,
    "index_select": index_select,
    "inside": inside,
    "linspace": linspace,
    "math": compute_number,
    "matmul": matmul,
    "meshgrid": meshgrid,
    "nonzero": nonzero,
    "norm": norm,
    "number": look,
    "one_hot": one_hot,
    "outer": outer,
    "pad": pad,
    "power": power,
    "quantile": quantile,
    "quotient": quotient,
    "repeat_interleave": repeat_interleave,
    "slow": slow,
    "sorting": sorting,
    "split": split,
    "sum": add,
    "take": take,
    "take_along_dim": take_along_dim,
    "tensors": broadcast_all,
    "tile": tile,
    "unbind": unbind,
    "view": view,
}
