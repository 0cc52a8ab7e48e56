"""Every write to users, projects, keys and sign-in links."""

import secrets
from datetime import timedelta
from hashlib import sha256

from django.db import IntegrityError, transaction
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import (
    Actor,
    ApiKey,
    Membership,
    Project,
    Role,
    SignInLink,
    User,
)
from webapp.accounts.permissions import check_can_write, may_set_budget
from webapp.accounts.tokens import is_token, read_token
from webapp.core.errors import NotFound, UserError

KEY_PREFIX = "tml-"  # the tinker SDK refuses keys that start otherwise
OTHER_PREFIX = "fw_"  # the same key as the Fireworks SDK takes it, which refuses tinker's
LINK_LIFETIME = timedelta(hours=24)
MIN_SHARE, MAX_SHARE = 0.01, 1000
MAX_BUDGET = 2**60  # bytes, an exbibyte
TOUCH_EVERY = timedelta(minutes=1)  # a key's last use is good to the minute


def hash_key(secret: str) -> str:
    """A key may be written with either prefix."""
    if secret.startswith(OTHER_PREFIX):
        secret = KEY_PREFIX + secret.removeprefix(OTHER_PREFIX)
    return hash_secret(secret)


def spell_for_fireworks(secret: str) -> str:
    return OTHER_PREFIX + secret.removeprefix(KEY_PREFIX)


def hash_secret(secret: str) -> str:
    """Keys are 256 random bits, so one plain digest keeps them and finds them."""
    return sha256(secret.encode()).hexdigest()


@transaction.atomic
def create_project(*, user: User, name: str) -> Project:
    name = name.strip()
    if not name:
        raise UserError("A project needs a name.", field="name")
    project = Project.objects.create(name=name)
    Membership.objects.create(project=project, user=user, role=Role.OWNER)
    record_audit(project=project, user=user, event="project_created", name=name)
    return project


def add_member(*, actor: Actor, username: str, role: str) -> Membership:
    if actor.role != Role.OWNER:
        raise UserError("Only an owner can add members.")
    user = User.objects.filter(username=username).first()
    if user is None:
        raise UserError(f"There is no user named {username}.", field="username")
    try:
        with transaction.atomic():
            member = Membership.objects.create(project=actor.project, user=user, role=role)
            _record(actor, "member_added", member=username, role=role)
    except IntegrityError:
        raise UserError(f"{username} is already a member.", field="username") from None
    return member


@transaction.atomic
def change_share(*, actor: Actor, project_id: str, share: float) -> Project:
    """A project's part of the tokens that the workers train, beside those of other projects."""
    if not actor.may_administer:
        raise UserError("Only an operator of this installation can change a project's share.")
    project = Project.objects.select_for_update().filter(pk=project_id).first()
    if project is None:
        raise NotFound("There is no such project.")
    if not MIN_SHARE <= share <= MAX_SHARE:  # false of what is no number, too
        raise UserError(f"A share is a number from {MIN_SHARE} to {MAX_SHARE:,}.", field="share")
    if project.share != share:
        before, project.share = project.share, share
        project.save(update_fields=["share"])
        details = {"before": before, "share": share}
        record_audit(project=project, user=actor.user, event="project_share_changed", **details)
    return project


@transaction.atomic
def change_disk_budget(*, actor: Actor, budget_bytes: int | None) -> Project:
    """Of the current project's files. None: as far as the disk goes."""
    if not may_set_budget(actor):
        raise UserError("Only an owner of this project can change its disk budget.")
    if budget_bytes is not None and not 0 <= budget_bytes <= MAX_BUDGET:
        raise UserError(
            f"A budget is a number of bytes from 0 to {MAX_BUDGET:,}.", field="budget_bytes"
        )
    project = Project.objects.select_for_update().get(pk=actor.project.pk)
    if project.disk_budget_bytes != budget_bytes:
        details = {"before": project.disk_budget_bytes, "budget_bytes": budget_bytes}
        project.disk_budget_bytes = budget_bytes
        project.save(update_fields=["disk_budget_bytes"])
        event = "project_disk_budget_changed"
        record_audit(project=project, user=actor.user, event=event, **details)
    return project


@transaction.atomic
def create_key(*, actor: Actor, name: str) -> tuple[ApiKey, str]:
    """The row, and the secret: the only time that anybody sees it."""
    name = name.strip()
    if not name:
        raise UserError(
            "A key needs a name, to tell it from others when you revoke it.", field="name"
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        project=actor.project,
        user=actor.user,
        name=name,
        hint=secret[:10],
        digest=hash_secret(secret),
    )
    _record(actor, "key_created", key=key.pk, name=name)
    return key, secret


def revoke_key(*, actor: Actor, key_id: str) -> None:
    key = ApiKey.objects.visible_to(actor).filter(pk=key_id).first()
    if key is None:
        raise NotFound("There is no such key.")
    check_can_write(actor, project_id=key.project_id)
    _revoke(actor, key_id, key.project_id)


def revoke_own_key(*, actor: Actor) -> None:
    """Whoever carries a key may give it up, whatever its role."""
    _revoke(actor, actor.key_id, actor.project.pk)


@transaction.atomic
def _revoke(actor: Actor, key_id: str, project_id: str) -> None:
    if ApiKey.objects.filter(pk=key_id, revoked_at=None).update(revoked_at=now()):
        record_audit(project=project_id, user=actor.user, event="key_revoked", key=key_id)


def _record(actor: Actor, event: str, **details: str) -> None:
    record_audit(project=actor.project, user=actor.user, event=event, **details)


def find_actor_of_key(secret: str) -> Actor | None:
    """By a key, or a token that stands for one. None: unknown, expired or revoked, or its user has
    left the project.
    """
    key = _find_key(secret)
    if key is None:
        return None
    membership = Membership.objects.filter(project=key.project, user=key.user).first()
    if membership is None or not key.user.is_active:
        return None
    if key.last_used_at is None or key.last_used_at < now() - TOUCH_EVERY:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now())
    return Actor(user=key.user, project=key.project, role=membership.role, key_id=key.pk)


def _find_key(secret: str) -> ApiKey | None:
    keys = ApiKey.objects.select_related("project", "user").filter(revoked_at=None)
    if not is_token(secret):
        return keys.filter(digest=hash_key(secret)).first()
    claims = read_token(secret)
    return keys.filter(pk=claims["key"]).first() if claims else None


def find_actor_of_user(user: User, *, project_id: str | None) -> Actor | None:
    """In the project asked for where the user is a member, else in the first. None: in none."""
    memberships = list(
        Membership.objects.select_related("project")
        .filter(user=user)
        .order_by("project__created_at")
    )
    chosen = next((m for m in memberships if m.project_id == project_id), None)
    membership = chosen or next(iter(memberships), None)
    if membership is None:
        return None
    return Actor(user=user, project=membership.project, role=membership.role)


def create_sign_in_link(*, user: User) -> str:
    """The secret part of a link that signs `user` in once."""
    secret = secrets.token_urlsafe(32)
    SignInLink.objects.create(
        user=user, digest=hash_secret(secret), expires_at=now() + LINK_LIFETIME
    )
    return secret


def use_sign_in_link(secret: str) -> User:
    links = SignInLink.objects.filter(digest=hash_secret(secret))
    used = links.filter(used_at=None, expires_at__gt=now()).update(used_at=now())
    if used != 1:
        raise UserError("This sign-in link was used already or has expired.")
    return links.select_related("user").get().user
