"""The section of exports on a checkpoint's page: asked for, downloaded, deleted."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.views.decorators.http import require_GET, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.checkpoints.downloads import stream_export
from webapp.checkpoints.exports import delete_export, find_export, request_export
from webapp.checkpoints.views import find_checkpoint


@login_required
@require_POST
def create(request: ActorRequest, checkpoint_id: str) -> HttpResponse:
    checkpoint = find_checkpoint(request.actor, checkpoint_id)
    request_export(
        actor=request.actor,
        checkpoint=checkpoint,
        kind=request.POST.get("kind", ""),
        precision=request.POST.get("precision", "source"),
    )
    return redirect(f"/checkpoints/{checkpoint.pk}/#exports")


@login_required
@require_GET
def download(request: ActorRequest, export_id: str) -> HttpResponseBase:
    return stream_export(find_export(request.actor, export_id))


@login_required
@require_POST
def delete(request: ActorRequest, export_id: str) -> HttpResponse:
    export = find_export(request.actor, export_id)
    delete_export(actor=request.actor, export=export)
    messages.success(request, "The export and its files were deleted; the checkpoint stays.")
    return redirect(f"/checkpoints/{export.checkpoint_id}/#exports")
