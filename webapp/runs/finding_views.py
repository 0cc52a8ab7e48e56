"""What people press beside a finding."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.runs.findings import dismiss_finding, restore_finding
from webapp.runs.views import find_run


@login_required
@require_POST
def dismiss(request: ActorRequest, run_id: str, key: str) -> HttpResponse:
    dismiss_finding(actor=request.actor, run=find_run(request.actor, run_id), key=key)
    messages.success(request, "Its badge is gone, until it ends and begins again.")
    return _back(run_id)


@login_required
@require_POST
def restore(request: ActorRequest, run_id: str, key: str) -> HttpResponse:
    restore_finding(actor=request.actor, run=find_run(request.actor, run_id), key=key)
    messages.success(request, "Its badge is shown again.")
    return _back(run_id)


def _back(run_id: str) -> HttpResponse:
    return HttpResponseRedirect(f"{reverse('run', args=[run_id])}?tab=integrity")
