"""The cast of the tests: Alice owns a project, Vera may read in it, strangers have their own."""

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from webapp.accounts.models import Actor, Membership, Role, User
from webapp.accounts.services import create_project
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Origin, Run, Session


def make_actor(username: str = "alice") -> Actor:
    user = User.objects.create_user(username)
    project = create_project(user=user, name=f"{username}'s project")
    return Actor(user=user, project=project, role=Role.OWNER)


def make_viewer(of: Actor, username: str = "vera") -> Actor:
    """May read in the project of `of`, and nothing else."""
    user = User.objects.create_user(username)
    Membership.objects.create(project=of.project, user=user, role=Role.VIEWER)
    return Actor(user=user, project=of.project, role=Role.VIEWER)


def sign_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.user)
    return client


def count_queries(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return len(captured)


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
