"""The end of a run, told to the webhooks of its project."""

from webapp.accounts.webhooks import tell
from webapp.runs.models import Run

EVENTS = {Run.Status.DONE: "run.done", Run.Status.FAILED: "run.failed"}


def tell_end(run: Run) -> None:
    """Once for each end; one that somebody stopped is no news to them. `run` may be an old copy."""
    ended = Run.objects.get(pk=run.pk)
    event = EVENTS.get(Run.Status(ended.status))
    if event is None or ended.ended_at is None:
        return
    said = f" {ended.error}" if ended.error else ""
    verb = "failed" if event == "run.failed" else "is done"
    body = {
        "text": f"The run {ended.name} {verb} after {ended.step:,} steps.{said}",
        "run": ended.pk,
        "run_name": ended.name,
        "status": ended.status,
        "step": ended.step,
        "path": f"/runs/{ended.pk}/",
    }
    tell(ended.project_id, event, f"{ended.pk}:{ended.ended_at.isoformat()}", body)
