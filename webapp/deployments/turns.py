"""Whose sampling call is next: programs take turns, so whoever came first holds up nobody."""

from collections import Counter
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from django.db.models import Count, Min, Q, QuerySet

from webapp.core.errors import TooMany
from webapp.deployments.models import SamplingCall

MOST_WAITING = 5000  # calls of one program; the SDK itself holds back at 2,000 for each client

Purpose = SamplingCall.Purpose
Status = SamplingCall.Status

# Somebody looks at these while they are made; a suite of 500 prompts must not stand before them.
WATCHED = (Purpose.PLAYGROUND, Purpose.REST)


@dataclass(frozen=True, slots=True)
class Line:
    """The waiting calls of one owner."""

    purpose: str
    owner: str
    first: int
    length: int


def name_owner(call: SamplingCall) -> str:
    """A program by its session, whatever number of sampling clients it opens; or what asks."""
    if call.sampling_session is not None:
        return call.sampling_session.session_id
    return str(call.run_id or call.about.get("evaluation") or call.project_id)


def check_room(owner: str) -> None:
    """The SDK waits a second where there is none, and sends the same request again."""
    waiting = SamplingCall.objects.filter(status=Status.QUEUED, purpose=Purpose.TINKER, owner=owner)
    if waiting.count() >= MOST_WAITING:
        raise TooMany(f"{MOST_WAITING} samples of this session wait already: send more later.")


def choose_calls(limit: int, among: Q) -> list[int]:
    """What people watch first; then of whoever has the fewest in hand, in order of arrival.

    `among`: those that could be answered now.
    """
    if limit <= 0:
        return []
    waiting = SamplingCall.objects.filter(among, status=Status.QUEUED)
    lines = [Line(*row) for row in _list_lines(waiting)]
    if len(lines) < 2:  # nobody to share with
        return [pk for line in lines for pk in _take(waiting, line, min(limit, line.length))]
    running = SamplingCall.objects.filter(status=Status.RUNNING).order_by()
    held = dict(running.values_list("owner").annotate(Count("pk")))
    shares = share_out(lines, Counter(held), limit)
    return [pk for line, share in shares.items() for pk in _take(waiting, line, share)]


def _list_lines(
    waiting: QuerySet[SamplingCall],
) -> QuerySet[SamplingCall, tuple[str, str, int, int]]:
    grouped = waiting.order_by().values_list("purpose", "owner")
    return grouped.annotate(first=Min("id"), length=Count("id"))


def share_out(lines: list[Line], held: Counter[str], room: int) -> Counter[Line]:
    """How many each line may send, so that all owners come to hold about the same number."""
    shares: Counter[Line] = Counter()
    heap = [(line.purpose not in WATCHED, held[line.owner], line.first, line) for line in lines]
    heapify(heap)
    while heap and room > 0:
        is_patient, num_held, first, line = heappop(heap)
        shares[line] += 1
        room -= 1
        if shares[line] < line.length:
            heappush(heap, (is_patient, num_held + 1, first, line))
    return shares


def _take(waiting: QuerySet[SamplingCall], line: Line, share: int) -> list[int]:
    if share == 1:
        return [line.first]
    same = waiting.filter(purpose=line.purpose, owner=line.owner).order_by("id")
    return list(same.values_list("pk", flat=True)[:share])
