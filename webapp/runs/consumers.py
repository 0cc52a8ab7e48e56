"""The socket of a run's page."""

from webapp.accounts.models import User
from webapp.core.consumers import HintConsumer
from webapp.core.events import run_group
from webapp.runs.models import Run


class RunConsumer(HintConsumer):
    """Hints: metrics, samples, status, log, checkpoints, evals, annotations, findings."""

    def find_group(self) -> str:
        user = self.scope["user"]
        run_id = self.read_id("run_id")
        if not isinstance(user, User):
            return ""
        is_visible = Run.objects.filter(pk=run_id, project__memberships__user=user).exists()
        return run_group(run_id) if is_visible else ""
