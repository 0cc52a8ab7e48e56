"""Prompts that begin alike are read once: later ones copy keys and values of one that is here.

Nothing is kept for this beyond the life of a sequence: what is lent belongs to one that is read or
runs now, as in a group that is sampled from one prompt by many requests at once.
"""

from collections.abc import Iterable, Sequence

from training.engine.calls import Call, Loan
from training.engine.kvcache import KvCache, Row

SHORTEST = 32  # tokens; fewer are read again as fast as they are found and copied


def find_loan(call: Call, others: Iterable[tuple[Call, Row]]) -> Loan | None:
    """The longest beginning that another call of the same adapter has or is about to have."""
    best: Loan | None = None
    for other, row in others:
        if other.adapter is not call.adapter:
            continue
        if call.request.with_routes and not other.request.with_routes:
            continue  # where its tokens went is not known
        length = min(call.num_lendable, count_common(call.request.prompt, other.request.prompt))
        if length >= (best.length + 1 if best else SHORTEST):
            best = Loan(row=row, length=length, log=other.log)
    return best


def count_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike, by halving: slices are compared fast."""
    if one[:SHORTEST] != other[:SHORTEST]:
        return 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def settle_loan(cache: KvCache, call: Call) -> None:
    """Copy what the call waits for, once it is there; a lender that has left lends nothing."""
    loan = call.loan
    if loan is None or call.row is None:
        return
    if not loan.row.is_live:
        call.loan = None
    elif loan.row.length >= loan.length:
        cache.copy(loan.row, call.row, loan.length)
        call.log.borrow(loan.log, loan.length)
        call.loan = None
        if not call.has_begun:
            call.num_cached = loan.length
