"""How much a deployment, or a whole installation, answers now: of the calls that have ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from django.db.models import CharField, QuerySet, Sum
from django.db.models.functions import Cast, Substr
from django.utils.timezone import now

from webapp.deployments.models import SamplingCall

WINDOW = timedelta(minutes=10)
NUM_BARS = 120  # of five seconds each: a server that starts again leaves a gap
LATELY = timedelta(minutes=1)
SECOND = len("2026-01-31 23:59:59")
MOST_CALLS = 5000  # of more than these it does not matter when each one began

Status = SamplingCall.Status
Row = tuple[datetime, datetime | None, datetime | None, datetime, int]

COLUMNS = ("created_at", "started_at", "first_token_at", "finished_at", "num_sampled_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Tokens a second between two moments. `height` is a share of the highest."""

    begin: datetime
    rate: float
    height: float
    place: int

    @property
    def tall(self) -> float:
        """In a chart that is 40 high."""
        return 40 * self.height

    @property
    def top(self) -> float:
        return 40 - self.tall


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of the last minutes. Times are in milliseconds, None where no call tells."""

    bars: Sequence[Bar]
    begin: datetime
    highest: float
    lately: float  # tokens a second of the last minute
    num_calls: int
    num_waiting: int
    num_running: int
    first_token: float | None
    each_token: float | None

    @property
    def is_empty(self) -> bool:
        return not (self.num_calls or self.num_waiting or self.num_running)


def read_traffic(calls: QuerySet[SamplingCall]) -> Traffic:
    """Two queries. Tokens of a call are spread over the time in which they were drawn."""
    until = now()
    begin = until - WINDOW
    ended = calls.filter(finished_at__gt=begin, status=Status.DONE).order_by("-finished_at")
    rows = list(ended.values_list(*COLUMNS)[:MOST_CALLS])
    live = calls.filter(status__in=(Status.QUEUED, Status.RUNNING)).order_by()
    statuses = list(live.values_list("status", flat=True)[:MOST_CALLS])
    is_whole = len(rows) < MOST_CALLS
    tokens = spread_tokens(rows, begin) if is_whole else add_up_tokens(ended, begin)
    length = WINDOW.total_seconds() / NUM_BARS
    num_late = round(LATELY.total_seconds() / length)
    return Traffic(
        bars=make_bars(tokens, begin, length),
        begin=begin,
        highest=max(tokens) / length,
        lately=sum(tokens[-num_late:]) / LATELY.total_seconds(),
        num_calls=len(rows),
        num_waiting=statuses.count(Status.QUEUED),
        num_running=statuses.count(Status.RUNNING),
        first_token=_find_median(_list_first_tokens(rows)),
        each_token=_find_median(_list_each_token(rows)),
    )


def spread_tokens(rows: Iterable[Row], begin: datetime) -> list[float]:
    """Tokens in each of the bars."""
    length = WINDOW.total_seconds() / NUM_BARS
    tokens = [0.0] * NUM_BARS
    for created, started, first, finished, count in rows:
        high = (finished - begin).total_seconds() / length
        low = ((first or started or created) - begin).total_seconds() / length
        low = min(low, high - 1e-3)  # one that came at once
        for place in range(max(int(low), 0), min(int(high), NUM_BARS - 1) + 1):
            inside = min(high, place + 1) - max(low, place)
            tokens[place] += count * max(inside, 0.0) / (high - low)
    return tokens


def add_up_tokens(ended: QuerySet[SamplingCall], begin: datetime) -> list[float]:
    """As if each call drew all of its tokens when it ended. By the text of a time: SQLite would
    call Python to truncate one, for each of many thousand rows.
    """
    second = Substr(Cast("finished_at", CharField()), 1, SECOND)
    sums = ended.order_by().values_list(second).annotate(tokens=Sum("num_sampled_tokens"))
    ends = [(datetime.fromisoformat(text).replace(tzinfo=UTC), count) for text, count in sums]
    return spread_tokens([(end, None, end, end, count) for end, count in ends], begin)


def make_bars(tokens: Sequence[float], begin: datetime, length: float) -> list[Bar]:
    highest = max(tokens) or 1.0
    return [
        Bar(
            begin=begin + timedelta(seconds=place * length),
            rate=count / length,
            height=count / highest,
            place=place,
        )
        for place, count in enumerate(tokens)
    ]


def _list_first_tokens(rows: Iterable[Row]) -> list[float]:
    return [(first - created).total_seconds() for created, _, first, _, _ in rows if first]


def _list_each_token(rows: Iterable[Row]) -> list[float]:
    return [
        (finished - first).total_seconds() / (count - 1)
        for _, _, first, finished, count in rows
        if first and count > 1
    ]


def _find_median(seconds: Sequence[float]) -> float | None:
    return 1000 * median(seconds) if seconds else None
