"""Who may be asked as a judge."""

import pytest

from tests.webapp.deployments.conftest import make_checkpoint
from tests.workers.cast import make_client_run
from tests.workers.test_samplers import AnswerWaiter, answer
from training.errors import InvalidInput
from webapp.accounts.models import Membership, Project, Role
from workers.judge import RemoteJudge, open_judge

pytestmark = pytest.mark.django_db


def open_in(project: Project, name: str) -> RemoteJudge:
    return open_judge(name, project=project, waiter=AnswerWaiter(answer), keep_going=lambda: None)


def test_a_judge_is_of_the_project_alone_wherever_else_its_owner_is_a_member() -> None:
    theirs = make_checkpoint(make_client_run(1))
    mine = make_client_run(2).project
    owner = Membership.objects.get(project=mine, role=Role.OWNER).user
    Membership.objects.create(project=theirs.project, user=owner, role=Role.MEMBER)
    assert open_in(theirs.project, theirs.tinker_path).target.checkpoint == theirs
    for name in (theirs.tinker_path, theirs.pk):
        with pytest.raises(InvalidInput, match="the judge "):
            open_in(mine, name)
