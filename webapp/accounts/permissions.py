"""Who may do what, as one-line checks that raise a sentence."""

from webapp.accounts.models import Actor, Membership, Role
from webapp.core.errors import NotFound, UserError


def check_can_write(actor: Actor, *, project_id: str = "") -> None:
    """In the current project, or in that of the row which is to change: a person sees rows of all
    their projects, and may be a member of one and a viewer of another.
    """
    if not _find_actor(actor, project_id).can_write:
        raise UserError("Your role in this project is viewer: it may read, not change.")


def _find_actor(actor: Actor, project_id: str) -> Actor:
    if project_id in ("", actor.project.pk):
        return actor
    theirs = Membership.objects.select_related("project").filter(user=actor.user)
    membership = theirs.filter(project=project_id).first()
    if membership is None or actor.is_key:
        raise NotFound("There is no such project.")
    return Actor(user=actor.user, project=membership.project, role=membership.role)


def may_administer(actor: Actor) -> bool:
    """Base models are directories of the machine, shared by all projects."""
    return actor.may_administer


def may_set_budget(actor: Actor) -> bool:
    """Of the disk, for the current project."""
    return actor.role == Role.OWNER or actor.may_administer


def check_may_administer(actor: Actor) -> None:
    if not may_administer(actor):
        raise UserError("Only an operator of this installation can change its base models.")
