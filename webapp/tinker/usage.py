"""What a project has used, by the hour: tokens trained and sampled, checkpoints and their storage.

It costs nothing here, so every price is absent. All sums are made by the database.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

from django.db.models import Count, F, Q, Sum
from django.db.models.functions import TruncHour
from django.utils.timezone import now

from webapp.accounts.models import USER_URN, Actor, User
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.deployments.models import SampledHour, SamplingCall
from webapp.deployments.retention import TOKENS, sum_by_hour
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Session
from webapp.tinker.session_search import write_metadata

HOUR = timedelta(hours=1)
LONGEST = timedelta(days=14)
GIGABYTE = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Whole hours, from `start` to before `end`."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """One kind of usage of one hour. `amount` orders the rows of an hour."""

    hour: datetime
    base_model_id: str | None
    user_id: int | None
    session_id: str | None
    info: Mapping[str, Any]
    amount: float


def check_window(start: datetime, end: datetime) -> Window:
    for name, moment in (("starting_on", start), ("ending_before", end)):
        if moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0) != moment:
            raise UserError(f"{name} is {moment.isoformat()}; send a whole hour.", field=name)
    if start > now():
        raise UserError("starting_on lies in the future.", field="starting_on")
    if not start < end <= start + LONGEST:
        raise UserError(
            "ending_before lies up to 14 days after starting_on.", field="ending_before"
        )
    return Window(start=start.astimezone(UTC), end=end.astimezone(UTC))


def read_usage(actor: Actor, window: Window) -> dict[str, Any]:
    rows = [
        *read_training(actor, window),
        *read_sampling(actor, window),
        *read_checkpoints(actor, window),
        *read_storage(actor, window),
    ]
    rows.sort(key=lambda row: (row.hour, -row.amount))
    names = read_names(rows)
    return {
        "data": [describe(row, actor, names) for row in rows],
        "sessions": read_sessions(actor, rows),
        "cost_data_through": None,
    }


def read_training(actor: Actor, window: Window) -> Iterable[Used]:
    done = Operation.objects.filter(
        Q(run__ended_at=None) | Q(run__ended_at__gte=window.start),
        run__project=actor.project,
        run__created_at__lt=window.end,
        kind=Operation.Kind.FORWARD_BACKWARD,
        status=Operation.Status.DONE,
        finished_at__gte=window.start,
        finished_at__lt=window.end,
    )
    grouped = done.order_by().values(
        hour=TruncHour("finished_at", tzinfo=UTC),
        base_model=F("run__base_model"),
        user=F("run__created_by"),
        session=F("run__session"),
    )
    for row in grouped.annotate(tokens=Sum("num_tokens")):
        yield make_used(row, row["tokens"], type="training", token_count=row["tokens"])


def read_sampling(actor: Actor, window: Window) -> Iterable[Used]:
    """Calls that are there, and the sums of those that are forgotten."""
    done = SamplingCall.objects.filter(
        project=actor.project,
        status=SamplingCall.Status.DONE,
        finished_at__gte=window.start,
        finished_at__lt=window.end,
    )
    gone = SampledHour.objects.filter(
        project=actor.project, hour__gte=window.start, hour__lt=window.end
    )
    kept = gone.values("hour", "base_model", "user", session=F("session_id"))
    sums = [*sum_by_hour(done), *kept.annotate(**{f"sum_{name}": Sum(name) for name in TOKENS})]
    for row in add_up(sums):
        cached, prompt = row["sum_num_cached_tokens"], row["sum_num_prompt_tokens"]
        prefill = "sampling_prefill"
        for is_cached, number in ((False, prompt - cached), (True, cached)):
            if number:
                info = {"type": prefill, "cached": is_cached, "token_count": number}
                yield make_used(row, number, **info)
        sampled = row["sum_num_sampled_tokens"]
        if sampled:
            yield make_used(row, sampled, type="sampling_sample", token_count=sampled)


def add_up(sums: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sums:
        key = (row["hour"], row["base_model"], row["user"], row["session"] or None)
        total = by_key.setdefault(key, {**row, **{f"sum_{name}": 0 for name in TOKENS}})
        for name in TOKENS:
            total[f"sum_{name}"] += row[f"sum_{name}"]
    return by_key.values()


def read_checkpoints(actor: Actor, window: Window) -> Iterable[Used]:
    made = Checkpoint.objects.filter(
        project=actor.project,
        is_ephemeral=False,
        created_at__gte=window.start,
        created_at__lt=window.end,
    )
    grouped = made.order_by().values(
        "base_model",
        hour=TruncHour("created_at", tzinfo=UTC),
        user=F("run__created_by"),
        session=F("run__session"),
    )
    for row in grouped.annotate(number=Count("pk")):
        yield make_used(row, row["number"], type="checkpoint", count=row["number"])


def make_used(row: Mapping[str, Any], amount: float, **info: Any) -> Used:
    return Used(
        hour=row["hour"],
        base_model_id=row["base_model"],
        user_id=row["user"],
        session_id=row["session"] or None,
        info=info,
        amount=amount,
    )


def read_storage(actor: Actor, window: Window) -> Iterable[Used]:
    """Bytes that lay on the disk, by the parts of hours that they did."""
    stores: dict[tuple[str, int | None], Store] = {}
    end = min(window.end, now())
    there = Checkpoint.objects.filter(
        Q(deleted_at=None) | Q(deleted_at__gt=window.start),
        project=actor.project,
        created_at__lt=end,
    ).order_by()
    columns = ("base_model", "run__created_by", "size_bytes", "created_at", "deleted_at")
    for base_model_id, user_id, size, made_at, deleted_at in there.values_list(*columns):
        store = stores.setdefault((base_model_id, user_id), Store(window))
        store.add(made_at, min(deleted_at or end, end), size)
    for (base_model_id, user_id), store in stores.items():
        for hour, amount in store.read():
            # Not free, which goes without saying: SDKs before 0.33 fail on the word.
            info = {"type": "storage", "gigabyte_hours": amount}
            yield Used(
                hour=hour,
                base_model_id=base_model_id,
                user_id=user_id,
                session_id=None,
                info=info,
                amount=0.0,
            )


class Store:
    """Bytes by the hour. Whole hours are a step up and one down, whatever lies between them."""

    def __init__(self, window: Window) -> None:
        self.start = window.start
        num_hours = int((window.end - window.start) / HOUR)
        self.parts = [0.0] * (num_hours + 1)
        self.steps = [0.0] * (num_hours + 1)

    def add(self, made_at: datetime, gone_at: datetime, size: int) -> None:
        begin = max(0.0, (made_at - self.start) / HOUR)
        until = (gone_at - self.start) / HOUR
        first, last = int(begin), int(until)
        if first == last:
            self.parts[first] += size * (until - begin)
            return
        self.parts[first] += size * (first + 1 - begin)
        self.steps[first + 1] += size
        self.steps[last] -= size
        self.parts[last] += size * (until - last)

    def read(self) -> Iterable[tuple[datetime, float]]:
        """Gigabyte-hours of the hours in which there was anything."""
        for index, (part, steady) in enumerate(
            zip(self.parts, accumulate(self.steps), strict=True)
        ):
            if part + steady > 0:
                yield self.start + index * HOUR, (part + steady) / GIGABYTE


def read_names(rows: Iterable[Used]) -> dict[Any, str]:
    """Base models by their ids, users by theirs."""
    models = BaseModel.objects.filter(pk__in={row.base_model_id for row in rows})
    users = User.objects.filter(pk__in={row.user_id for row in rows})
    return {
        **{model.pk: model.name for model in models.prefetch_related("names")},
        **dict(users.values_list("pk", "username")),
    }


def read_sessions(actor: Actor, rows: Iterable[Used]) -> dict[str, Any]:
    session_ids = {row.session_id for row in rows if row.session_id}
    found = Session.objects.in_project(actor).filter(pk__in=session_ids)
    return {
        session.pk: {"user_metadata": write_metadata(session.user_metadata) or None}
        for session in found
    }


def describe(row: Used, actor: Actor, names: Mapping[Any, str]) -> dict[str, Any]:
    return {
        "bucket_start": row.hour.isoformat(),
        "bucket_end": (row.hour + HOUR).isoformat(),
        "base_model": names.get(row.base_model_id),
        "user_id": f"{USER_URN}{row.user_id}" if row.user_id else None,
        "user_name": names.get(row.user_id),
        "session_id": row.session_id,
        "project_id": actor.project.pk,
        "estimated_cost_usd": None,
        "effective_rate_usd_per_million_tokens": None,
        "effective_rate_usd_per_gigabyte_month": None,
        "event_info": dict(row.info),
    }


def read_current_storage(actor: Actor) -> dict[str, Any]:
    kept = Checkpoint.objects.in_project(actor).alive().filter(is_ephemeral=False).order_by()
    grouped = kept.values(
        user=F("run__created_by"),
        email=F("run__created_by__email"),
        username=F("run__created_by__username"),
    )
    sums = grouped.annotate(number=Count("pk"), size=Sum("size_bytes")).order_by("-size")
    data = [
        {
            "project_id": actor.project.pk,
            "org_user_urn": f"{USER_URN}{row['user']}" if row["user"] else None,
            "user_email": row["email"] or None,
            "user_name": row["username"],
            "checkpoint_count": row["number"],
            "size_bytes": row["size"],
            "size_gigabytes": row["size"] / GIGABYTE,
            "estimated_monthly_cost_usd": None,
        }
        for row in sums
    ]
    return {"effective_rate_usd_per_gigabyte_month": None, "data": data}
