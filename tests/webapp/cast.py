"""The fixed cast of the tests: Alice owns a project, Carol is a stranger with her own."""

from webapp.accounts.models import Actor, Role, User
from webapp.accounts.services import create_project
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run, Session


def make_actor(username: str = "alice") -> Actor:
    user = User.objects.create_user(username)
    project = create_project(user=user, name=f"{username}'s project")
    return Actor(user=user, project=project, role=Role.OWNER, is_key=True)


def make_base_model(name: str = "tiny-chatml-1m") -> BaseModel:
    base_model = BaseModel.objects.create(
        path=f"/models/{name}", vocab_size=1000, context_tokens=256, has_chat_template=True
    )
    BaseModelName.objects.create(base_model=base_model, name=name)
    return base_model


def make_run(actor: Actor, base_model: BaseModel | None = None, *, model_seq_id: int = 0) -> Run:
    """As an SDK client opens one: its first operation has seq 0."""
    session = Session.objects.create(project=actor.project, user=actor.user)
    return Run.objects.create(
        project=actor.project,
        created_by=actor.user,
        name="a run",
        origin=Origin.TINKER,
        status=Run.Status.RUNNING,
        base_model=base_model or make_base_model(),
        rank=8,
        session=session,
        model_seq_id=model_seq_id,
    )
