"""The settings page that says which calls of the SDK work here."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.tinker.conformance import compare_reports, find_reports


@login_required
@require_GET
def show(request: ActorRequest) -> HttpResponse:
    reports = find_reports()
    status = request.GET.get("status", "")
    context = {
        "tab": "conformance",
        "reports": reports,
        "groups": compare_reports(reports, status=status),
        "status": status,
    }
    return render(request, "tinker/conformance.html", context)
