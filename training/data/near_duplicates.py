"""Near-duplicates: MinHash over shingles of words finds candidates, exact Jaccard decides.

Memory is bounded: each row costs its signature and at most `MAX_WORDS` shingles of four bytes.
"""

import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import regex  # type: ignore[import-untyped]
from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Signature = NDArray[np.uint32]  # of one row, or of all as a matrix

THRESHOLD = 0.8
SHINGLE_WORDS = 3
NUM_HASHES = 128
MAX_WORDS = 2_000  # of a row: what is behind them is not compared
MAX_SHINGLES = 60_000_000  # of all rows: 240 MB
MAX_LEADERS = 16  # that a row of one bucket is compared with
# Bands are cut for pairs this much less alike, so that of pairs at the threshold under one in 200
# is missed; an estimate that is lower still is none: its standard error is under 0.045.
MARGIN = 0.15
WORD = regex.compile(r"\w+")
PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Sketches:
    """Signatures and shingles of rows, in the order they were added."""

    signatures: "array[int]" = field(default_factory=lambda: array("I"))
    shingles: "array[int]" = field(default_factory=lambda: array("I"))
    ends: "array[int]" = field(default_factory=lambda: array("Q"))
    num_left_out: int = 0  # past the bound on memory
    # One for all rows: to make one draws its hashes, which takes longer than a short row.
    sketch: MinHash = field(default_factory=lambda: MinHash(num_perm=NUM_HASHES, hashfunc=int))

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, text: str) -> None:
        found = hash_shingles(text) if len(self.shingles) < MAX_SHINGLES else EMPTY
        if not len(found):
            self.num_left_out += len(self.shingles) >= MAX_SHINGLES
        self.signatures.frombytes(self.sign(found).tobytes())
        self.shingles.frombytes(found.astype(np.uint32).tobytes())
        self.ends.append(len(self.shingles))

    def sign(self, shingles: Hashes) -> Signature:
        self.sketch.clear()
        self.sketch.update_batch(shingles.tolist())
        signature: Signature = self.sketch.hashvalues
        assert signature.dtype == np.uint32  # what 32 bits of a hash are permuted to
        return signature

    def read_shingles(self, index: int) -> NDArray[np.uint32]:
        start = self.ends[index - 1] if index else 0
        return np.frombuffer(self.shingles, dtype=np.uint32)[start : self.ends[index]]


EMPTY: Hashes = np.zeros(0, dtype=np.uint64)


def hash_shingles(text: str) -> Hashes:
    """Of every run of three words; a shorter text is one shingle. Case and marks do not count."""
    words = WORD.findall(text[: MAX_WORDS * 20].casefold())[:MAX_WORDS]
    if not words:
        return EMPTY
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    size = min(SHINGLE_WORDS, len(words))
    runs = len(words) - size + 1
    mixed = np.zeros(runs, dtype=np.uint64)
    for place in range(size):
        mixed = (mixed ^ hashes[place : place + runs]) * PRIME
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed >> np.uint64(32))


def find_twins(
    sketches: Sketches, *, threshold: float = THRESHOLD, num_leaders: int | None = None
) -> dict[int, tuple[int, float]]:
    """Each row that is near an earlier one: that one, and their Jaccard similarity.

    `num_leaders`: only the first ones are compared with, and only by those behind them.
    """
    matrix = np.frombuffer(sketches.signatures, dtype=np.uint32).reshape(-1, NUM_HASHES)
    search = Search(sketches=sketches, matrix=matrix, threshold=threshold)
    for bucket in list_buckets(matrix, threshold):
        search.look(bucket, num_leaders)
    return search.twins


def list_buckets(matrix: Signature, threshold: float) -> Iterator[NDArray[np.int64]]:
    """Rows that agree on a whole band of their signatures, in their order."""
    if len(matrix) < 2:
        return
    sizes = MinHashLSH(
        threshold=max(threshold - MARGIN, 0.3), num_perm=NUM_HASHES, weights=(0.1, 0.9)
    )
    for band in range(sizes.b):
        part = matrix[:, band * sizes.r : (band + 1) * sizes.r]
        _, labels, counts = np.unique(mix_columns(part), return_inverse=True, return_counts=True)
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(counts)
        for label in np.flatnonzero(counts > 1):
            yield order[ends[label] - counts[label] : ends[label]]


def mix_columns(part: Signature) -> Hashes:
    mixed = np.zeros(len(part), dtype=np.uint64)
    for column in part.T:
        mixed = (mixed ^ column) * PRIME
        mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(slots=True, kw_only=True)
class Search:
    """What was found so far. A row with a twin is looked at no more."""

    sketches: Sketches
    matrix: Signature
    threshold: float
    twins: dict[int, tuple[int, float]] = field(default_factory=dict)

    def look(self, bucket: NDArray[np.int64], num_leaders: int | None) -> None:
        leaders: list[int] = []
        for row in bucket.tolist():
            if row in self.twins:
                continue
            may_lead = num_leaders is None or row < num_leaders
            if leaders and (num_leaders is None or row >= num_leaders):
                self.compare(row, leaders)
            if may_lead and row not in self.twins and len(leaders) < MAX_LEADERS:
                leaders.append(row)

    def compare(self, row: int, leaders: list[int]) -> None:
        estimates = np.mean(self.matrix[leaders] == self.matrix[row], axis=1)
        for place in np.flatnonzero(estimates >= self.threshold - MARGIN):
            leader = leaders[place]
            similarity = jaccard(
                self.sketches.read_shingles(leader), self.sketches.read_shingles(row)
            )
            if similarity >= self.threshold:
                self.twins[row] = (leader, similarity)
                return


def jaccard(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    if not len(left) or not len(right):
        return 0.0
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def count_groups(twins: Mapping[int, tuple[int, float]]) -> int:
    """Rows that hang together, each group led by its first row."""
    roots: set[int] = set()
    for row in twins:
        at = row
        while at in twins:
            at = twins[at][0]
        roots.add(at)
    return len(roots)
