"""The socket of every page that shows a whole project."""

from webapp.accounts.models import Project, User
from webapp.core.consumers import HintConsumer
from webapp.core.events import project_group


class ProjectConsumer(HintConsumer):
    """Hints: runs, datasets, checkpoints, evals, deployments."""

    def find_group(self) -> str:
        user = self.scope["user"]
        project_id = self.read_id("project_id")
        if not isinstance(user, User):
            return ""
        is_member = Project.objects.filter(pk=project_id, memberships__user=user).exists()
        return project_group(project_id) if is_member else ""
