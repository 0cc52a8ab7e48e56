"""Every write to retention rules, and their application: against what is true at that moment."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, User
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.chains import lock
from webapp.checkpoints.models import Checkpoint, RetentionRule
from webapp.checkpoints.retention_plans import Plan, find_suite_name, make_plan
from webapp.checkpoints.retention_rules import Keep
from webapp.checkpoints.services import announce, remove_folder, without_users
from webapp.core.errors import UserError

BATCH = 50  # deleted in one transaction, after everything was looked at again
MOST_NAMED = 1000  # in the line of the audit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    num_deleted: int
    freed_bytes: int


def find_rule(project_id: str) -> RetentionRule | None:
    return RetentionRule.objects.filter(project=project_id).select_related("changed_by").first()


@transaction.atomic
def save_rule(*, actor: Actor, keep: Mapping[str, Any], is_active: bool) -> RetentionRule:
    """An active one is applied every minute or so from now on."""
    check_can_write(actor)
    parts = Keep.read(keep)
    parts.check()
    find_suite_name(actor.project.pk, parts)
    columns = {"keep": parts.to_dict(), "is_active": is_active}
    rule, _ = RetentionRule.objects.update_or_create(
        project=actor.project,
        defaults={**columns, "changed_by": actor.user, "changed_at": now()},
    )
    details = {"keep": rule.keep, "is_active": is_active}
    event = "checkpoint_retention_changed"
    record_audit(project=actor.project, user=actor.user, event=event, **details)
    return rule


@transaction.atomic
def drop_rule(*, actor: Actor) -> None:
    check_can_write(actor)
    if RetentionRule.objects.filter(project=actor.project).delete()[0]:
        event = "checkpoint_retention_dropped"
        record_audit(project=actor.project, user=actor.user, event=event)


def apply_rule(*, actor: Actor, seen_at: str = "") -> Applied:
    """By hand. `seen_at` is when the rule that somebody looked at was changed: another one since
    then is not applied unseen."""
    check_can_write(actor)
    rule = find_rule(actor.project.pk)
    if rule is None:
        raise UserError("This project has no retention rule: save one first.")
    if seen_at and seen_at != rule.changed_at.isoformat():
        raise UserError("Somebody has changed the rule meanwhile: look at what it deletes again.")
    return _apply(rule, user=actor.user)


def apply_active_rules() -> int:
    """By the beat. One that cannot be applied, as its suite is gone, deletes nothing."""
    num_deleted = 0
    for rule in RetentionRule.objects.filter(is_active=True):
        try:
            num_deleted += _apply(rule, user=None).num_deleted
        except UserError as error:
            logger.warning("retention of %s: %s", rule.project_id, error)
    return num_deleted


def _apply(rule: RetentionRule, *, user: User | None) -> Applied:
    keep = Keep.read(rule.keep)
    deleted: list[Checkpoint] = []
    freed_bytes = 0
    # Once more as long as something goes: what was needed by what is gone may go after it.
    while plan := _take_batch(rule, keep):
        deleted += [item.checkpoint for item in plan.items]
        freed_bytes += plan.freed_bytes
        for item in plan.items:
            remove_folder(item.checkpoint)
            announce(item.checkpoint)
    RetentionRule.objects.filter(pk=rule.pk).update(applied_at=now())
    if deleted:
        _record(rule, user, deleted, freed_bytes)
    return Applied(num_deleted=len(deleted), freed_bytes=freed_bytes)


@transaction.atomic
def _take_batch(rule: RetentionRule, keep: Keep) -> Plan | None:
    """Decided with the rows locked: what has become needed since the last look stays. Newest
    first, so that a delta goes before what it is the difference to."""
    if not RetentionRule.objects.filter(pk=rule.pk, changed_at=rule.changed_at).exists():
        return None  # it was changed or dropped meanwhile
    first_look = [item.checkpoint.pk for item in make_plan(rule.project_id, keep).doomed]
    if not first_look:
        return None
    mine = Checkpoint.objects.alive().filter(project=rule.project_id)
    locked = set(lock(mine.filter(pk__in=first_look)))
    plan = make_plan(rule.project_id, keep)
    chosen = []
    for item in sorted(plan.doomed, key=lambda item: -item.checkpoint.seq):
        same = mine.filter(pk=item.checkpoint.pk)
        if item.checkpoint.pk in locked and without_users(same).update(deleted_at=now()) == 1:
            chosen.append(item)
        if len(chosen) == BATCH:
            break
    return Plan(keep=keep, suite_name="", items=chosen) if chosen else None


def _record(
    rule: RetentionRule, user: User | None, deleted: list[Checkpoint], freed_bytes: int
) -> None:
    record_audit(
        project=rule.project_id,
        user=user,
        event="checkpoint_retention_applied",
        keep=rule.keep,
        deleted=len(deleted),
        freed_bytes=freed_bytes,
        checkpoints=[checkpoint.pk for checkpoint in deleted[:MOST_NAMED]],
    )
