"""Who may do what, as one-line checks that raise a sentence."""

from webapp.accounts.models import Actor, Role
from webapp.core.errors import UserError


def check_can_write(actor: Actor) -> None:
    if not actor.can_write:
        raise UserError("Your role in this project is viewer: it may read, not change.")


def check_may_administer(actor: Actor) -> None:
    """Base models are directories of the machine, shared by all projects."""
    if actor.role != Role.OWNER or not actor.user.is_staff:
        raise UserError("Only an operator of this installation can change its base models.")
