"""Addresses that are told what happens in a project: every write to webhooks and deliveries."""

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.db import transaction
from django.db.models import F, Max
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Delivery, Project, Role, Webhook
from webapp.core.dispatch import DELIVER, send_task
from webapp.core.errors import NotFound, UserError
from webapp.core.ids import make_id

SECRET_PREFIX = "whsec_"
LONGEST_URL = 500
MOST_WEBHOOKS = 20
TEST = "webhook.test"
# What may be chosen; a star stands for every event that begins so.
EVENTS = {
    "diagnostic.*": "a diagnostic found something wrong with a run",
    "run.done": "a run ended well",
    "run.failed": "a run failed",
    "alias.moved": "an alias names another checkpoint",
    "alias.refused": "an alias was not allowed to move",
}
EVENT_NAME = re.compile(r"[a-z_]{1,20}\.(\*|[a-z_]{1,38})")
# Between one try and the next; the last one again and again, until a day is over.
RESTS = tuple(timedelta(seconds=seconds) for seconds in (15, 60, 300, 900, 3600))
LIFETIME = timedelta(days=1)
GRACE = timedelta(hours=2)  # beyond the longest rest between two tries
NO_TURN = "Given up after a day, in which its address did not answer."
KEPT = timedelta(days=30)  # of deliveries that have ended; what is told again later is told again
NO_HOST = "An address begins with http:// or https:// and names a host."

Status = Delivery.Status


def tell(project: Project | str, event: str, key: str, body: Mapping[str, Any]) -> int:
    """One delivery for each webhook that wants this event. Returns how many wanted it.

    `key` says of what it speaks: the same event and key are told once, however often this is
    called. `body["text"]` is the sentence that a chat shows.
    """
    project_id = project if isinstance(project, str) else project.pk
    live = Webhook.objects.filter(project=project_id, is_active=True)
    wanted = [webhook for webhook in live if wants(webhook, event)]
    return _queue(wanted, project_id, event, key, body)


def _queue(
    webhooks: Sequence[Webhook], project_id: str, event: str, key: str, body: Mapping[str, Any]
) -> int:
    if not webhooks:
        return 0
    moment = now()
    told = {"event": event, "project": project_id, "at": moment.isoformat(), **body}
    rows = [
        Delivery(webhook=each, event=event, key=make_key(event, key), body=told, next_at=moment)
        for each in webhooks
    ]
    Delivery.objects.bulk_create(rows, ignore_conflicts=True)
    send_task(DELIVER)
    return len(rows)


def make_key(event: str, key: str) -> str:
    whole = f"{event}:{key}"
    return whole if len(whole) <= 120 else f"{whole[:55]}:{sha256(whole.encode()).hexdigest()}"


def wants(webhook: Webhook, event: str) -> bool:
    family = f"{event.partition('.')[0]}.*"
    return not webhook.events or event in webhook.events or family in webhook.events


def check_owner(actor: Actor) -> None:
    if actor.role != Role.OWNER:
        raise UserError("Only an owner of the project can see and change its webhooks.")


def find_webhook(actor: Actor, webhook_id: str) -> Webhook:
    check_owner(actor)
    webhook = Webhook.objects.in_project(actor).filter(pk=webhook_id).first()
    if webhook is None:
        raise NotFound("There is no such webhook.")
    return webhook


@transaction.atomic
def create_webhook(*, actor: Actor, url: str, events: Sequence[str] = ()) -> tuple[Webhook, str]:
    """The row, and its secret: the only time that anybody sees it."""
    check_owner(actor)
    check_events(events)
    url = check_url(url)
    if Webhook.objects.filter(project=actor.project).count() >= MOST_WEBHOOKS:
        raise UserError(f"A project has at most {MOST_WEBHOOKS} webhooks: delete one first.")
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    webhook = Webhook.objects.create(
        project=actor.project,
        url=url,
        secret=secret,
        events=sorted(set(events)),
        created_by=actor.user,
    )
    _record(actor, "webhook_created", webhook)
    return webhook, secret


@transaction.atomic
def switch_webhook(*, actor: Actor, webhook: Webhook, is_active: bool) -> None:
    """What was not delivered yet waits no longer where it is switched off."""
    check_owner(actor)
    webhook.is_active = is_active
    webhook.save(update_fields=["is_active"])
    if not is_active:
        _give_up_waiting(webhook, "The webhook was switched off.")
    _record(actor, "webhook_switched_on" if is_active else "webhook_switched_off", webhook)


def _give_up_waiting(webhook: Webhook, why: str) -> None:
    waiting = webhook.deliveries.filter(status=Status.WAITING)
    waiting.update(status=Status.GIVEN_UP, error=why, ended_at=now())


@transaction.atomic
def delete_webhook(*, actor: Actor, webhook: Webhook) -> None:
    check_owner(actor)
    _record(actor, "webhook_deleted", webhook)
    webhook.delete()


def send_test(*, actor: Actor, webhook: Webhook) -> None:
    """To this one alone, whatever events it wants."""
    check_owner(actor)
    if not webhook.is_active:
        raise UserError("The webhook is switched off: switch it on first.")
    text = f"A test from Hone: the project {actor.project} reaches this address."
    _queue([webhook], webhook.project_id, TEST, make_id("test"), {"text": text})


def _record(actor: Actor, event: str, webhook: Webhook) -> None:
    details = {"webhook": webhook.pk, "address": mask(webhook.url)}
    record_audit(project=actor.project, user=actor.user, event=event, **details)


def check_events(events: Sequence[str]) -> None:
    for event in events:
        if not EVENT_NAME.fullmatch(event):
            raise UserError(
                f"{event!r:.60} is no event: send some of {', '.join(EVENTS)}, or none for all.",
                field="events",
            )


def check_url(url: str) -> str:
    """This machine and private networks are fine: the tool is its owners' own."""
    url = url.strip()
    if len(url) > LONGEST_URL:
        raise UserError(f"An address has at most {LONGEST_URL} characters.", field="url")
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(NO_HOST, field="url")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "The address carries a name or password, which everybody who sees it could read."
            " Leave them out: the signature of each body says who sent it.",
            field="url",
        )
    return url


def _split(url: str) -> SplitResult:
    is_plain = url.isascii() and url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here because a wrong one is refused only when it is read
    except ValueError:
        is_plain = False
    if not is_plain:
        raise UserError("The address is not one that can be written in a URL.", field="url")
    return parts


def mask(url: str) -> str:
    """Whoever knows the whole address of a chat may write to it: pages show where it leads only."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    rest = "/…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host}{rest}"


def announce_deliveries() -> None:
    """For messages that were lost, and tries whose time has come."""
    if Delivery.objects.filter(status=Status.WAITING, next_at__lte=now()).exists():
        send_task(DELIVER)


def list_due(limit: int) -> list[Delivery]:
    due = Delivery.objects.filter(status=Status.WAITING, next_at__lte=now())
    return list(due.select_related("webhook").order_by("next_at", "pk")[:limit])


def claim_delivery(delivery: Delivery) -> bool:
    """Before it is sent: what a dying process had in hand is tried again. False: another has it."""
    tries = delivery.tries
    rest = RESTS[min(tries, len(RESTS) - 1)]
    mine = Delivery.objects.filter(pk=delivery.pk, status=Status.WAITING, tries=tries)
    claimed = mine.update(tries=F("tries") + 1, next_at=now() + rest) == 1
    delivery.tries = tries + 1
    return claimed


def note_taken(delivery: Delivery) -> None:
    waiting = Delivery.objects.filter(pk=delivery.pk, status=Status.WAITING)
    waiting.update(status=Status.TAKEN, error="", ended_at=now())


def note_refused(delivery: Delivery, why: str) -> None:
    """Tried again, less and less often, until it is a day old."""
    columns: dict[str, Any] = {"error": why}
    if now() - delivery.created_at >= LIFETIME:
        text = f"Given up after a day and {delivery.tries} tries. The last one: {why}"
        columns = {"status": Status.GIVEN_UP, "error": text, "ended_at": now()}
    Delivery.objects.filter(pk=delivery.pk, status=Status.WAITING).update(**columns)


def postpone(refused: Delivery) -> None:
    """What else waits for the same address comes when that one is tried again, and not before what
    waits for others."""
    rest = RESTS[min(refused.tries - 1, len(RESTS) - 1)]
    due = Delivery.objects.filter(webhook=refused.webhook_id, status=Status.WAITING)
    due.filter(next_at__lte=now()).update(next_at=now() + rest)


def forget_deliveries() -> None:
    """And those that found no turn for a day, behind others for an address that does not answer."""
    late = Delivery.objects.filter(status=Status.WAITING, created_at__lt=now() - LIFETIME - GRACE)
    late.update(status=Status.GIVEN_UP, error=NO_TURN, ended_at=now())
    Delivery.objects.filter(ended_at__lt=now() - KEPT).delete()


def list_webhooks(actor: Actor) -> list[Webhook]:
    check_owner(actor)
    rows = Webhook.objects.in_project(actor).annotate(last_at=Max("deliveries__ended_at"))
    return list(rows.order_by("created_at"))
