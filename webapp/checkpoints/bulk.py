"""The same for many checkpoints at once: each is done or says why not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint, keep_checkpoint, set_pinned
from webapp.core.errors import UserError
from webapp.core.templatetags.hone import count, size

MOST = 1000  # in one request

ACTIONS: Mapping[str, Callable[..., None]] = {
    "delete": delete_checkpoint,
    "pin": partial(set_pinned, is_pinned=True),
    "unpin": partial(set_pinned, is_pinned=False),
    "keep": keep_checkpoint,
}
DONE = {
    "delete": "deleted",
    "pin": "pinned: no rule deletes it",
    "unpin": "unpinned",
    "keep": "kept until somebody deletes it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    action: str
    done: Sequence[Checkpoint]
    refused: Sequence[tuple[Checkpoint, str]]
    missing: Sequence[str]

    @property
    def size_bytes(self) -> int:
        return sum(checkpoint.size_bytes for checkpoint in self.done)

    def describe(self) -> str:
        number, word = len(self.done), DONE[self.action].partition(":")[0]
        said = f"{count(number)} checkpoint{'' if number == 1 else 's'} {word}"
        return f"{said}, {size(self.size_bytes)}."

    def describe_refused(self) -> str:
        """The first reason, and how many more there are; empty where all was done."""
        reasons = [reason for _, reason in self.refused]
        if self.missing:
            reasons.append(f"There is no checkpoint {self.missing[0]:.60}.")
        number = len(self.refused) + len(self.missing)
        if number == 0:
            return ""
        rest = f" {count(number - 1)} more were left as they are." if number > 1 else ""
        return reasons[0] + rest


def act_on_many(*, actor: Actor, ids: Sequence[str], action: str) -> Outcome:
    """Newest first: a delta goes before what it is the difference to."""
    if action not in ACTIONS:
        raise UserError(
            f"action is {action[:40]!r}: send one of {', '.join(ACTIONS)}.", field="action"
        )
    wanted = list(dict.fromkeys(ids))
    if not wanted:
        raise UserError("Choose at least one checkpoint.", field="ids")
    if len(wanted) > MOST:
        raise UserError(f"At most {MOST:,} checkpoints at once.", field="ids")
    check_can_write(actor)
    rows = Checkpoint.objects.in_project(actor).alive().filter(pk__in=wanted)
    found = list(rows.select_related("run").order_by("-seq", "pk"))
    done, refused = [], []
    for checkpoint in found:
        try:
            ACTIONS[action](actor=actor, checkpoint=checkpoint)
            done.append(checkpoint)
        except UserError as error:
            refused.append((checkpoint, error.message))
    known = {checkpoint.pk for checkpoint in found}
    missing = [each for each in wanted if each not in known]
    return Outcome(action=action, done=done, refused=refused, missing=missing)
