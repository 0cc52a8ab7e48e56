"""Keys and values of live sequences: slabs by size class, read by attention without a copy.

A slab holds `capacity` positions for each of its slots; slots in use always come first, so that
attention over a whole slab is one call on a view. A sequence that outgrows its class moves to the
next one. Shape letters: S slots, K key-value heads, C capacity, D head size, N rows written.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

SMALLEST_CAPACITY = 128


@dataclass(slots=True, eq=False)
class Row:
    """Where one sequence's keys and values lie. Slots change as neighbours leave."""

    slab: "Slab"
    slot: int
    length: int = 0

    @property
    def is_live(self) -> bool:
        """False: it was removed, and its place may be another's."""
        rows = self.slab.rows
        return self.slot < len(rows) and rows[self.slot] is self


class Slab:
    """One size class: for each layer a tensor of keys and one of values, of shape (S, K, C, D)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Row] = []
        self.num_slots = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key_NKD: Tensor, value_NKD: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of one layer, made on first use in the shape and type of what is stored."""
        if index not in self.layers:
            self.layers[index] = (self._zeros_like(key_NKD), self._zeros_like(value_NKD))
        return self.layers[index]

    def add(self) -> Row:
        if len(self.rows) == self.num_slots:
            self._resize(max(1, 2 * self.num_slots))
        row = Row(self, len(self.rows))
        self.rows.append(row)
        return row

    def remove(self, row: Row) -> None:
        """The last row moves into the hole: what is in use stays together."""
        last = self.rows.pop()
        if last is not row:
            _copy(last, self, row.slot)
            last.slot = row.slot
            self.rows[row.slot] = last
        if not self.rows:
            self._resize(0)

    def _zeros_like(self, sample_NKD: Tensor) -> Tensor:
        # Zeros: masked positions are multiplied by 0, and 0 times an old NaN would be NaN.
        _, heads, size = sample_NKD.shape
        return sample_NKD.new_zeros(self.num_slots, heads, self.capacity, size)

    def _resize(self, num_slots: int) -> None:
        self.num_slots = num_slots
        if num_slots == 0:
            self.layers.clear()
        for index, (keys, values) in self.layers.items():
            self.layers[index] = (_grown(keys, num_slots), _grown(values, num_slots))


class KvCache:
    """All slabs. `reserve` before a sequence's next positions are written."""

    def __init__(self) -> None:
        self.slabs: dict[int, Slab] = {}

    def add(self, length: int) -> Row:
        """A row with room for `length` positions."""
        return self._slab_for(length).add()

    def reserve(self, row: Row, length: int) -> None:
        """Make room for `length` positions in all; the row may move to another slab."""
        if length > row.slab.capacity:
            self._move(row, self._slab_for(length))

    def fork(self, row: Row) -> Row:
        """A second row with the same content."""
        twin = row.slab.add()
        twin.length = row.length
        _copy(row, twin.slab, twin.slot)
        return twin

    def copy(self, source: Row, target: Row, length: int) -> None:
        """The first `length` positions, of a row that has them to one that has nothing yet."""
        for index, (keys, values) in source.slab.layers.items():
            target.slab.layer(index, keys[:1, :, 0], values[:1, :, 0])
        _copy(source, target.slab, target.slot, length)
        target.length = length

    def remove(self, row: Row) -> None:
        row.slab.remove(row)

    def _slab_for(self, length: int) -> Slab:
        capacity = max(SMALLEST_CAPACITY, 1 << (length - 1).bit_length())
        return self.slabs.setdefault(capacity, Slab(capacity))

    def _move(self, row: Row, target: Slab) -> None:
        place = target.add()
        for index, (keys, values) in row.slab.layers.items():
            target.layer(index, keys[:1, :, 0], values[:1, :, 0])
        _copy(row, target, place.slot)
        row.slab.remove(row)
        target.rows[place.slot] = row
        row.slab, row.slot = target, place.slot


def _grown(tensor_SKCD: Tensor, num_slots: int) -> Tensor:
    grown = tensor_SKCD.new_zeros(num_slots, *tensor_SKCD.shape[1:])
    kept = min(num_slots, len(tensor_SKCD))
    grown[:kept] = tensor_SKCD[:kept]
    return grown


def _copy(row: Row, target: Slab, slot: int, length: int | None = None) -> None:
    length = row.length if length is None else length
    for index, tensors in row.slab.layers.items():
        for source, destination in zip(tensors, target.layers[index], strict=True):
            destination[slot, :, :length] = source[row.slot, :, :length]


def bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
