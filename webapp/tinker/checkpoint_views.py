"""The Tinker wire, checkpoints: listed, published, given a lifetime, deleted, fetched."""

import re
from datetime import UTC, datetime

from django.db.models import Q
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.utils.http import http_date

from webapp.accounts.models import Actor
from webapp.checkpoints import links
from webapp.checkpoints.downloads import find_files
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.names import read_ttl
from webapp.checkpoints.services import (
    PATH_KINDS,
    delete_checkpoint,
    find_by_tinker_path,
    set_lifetime,
    set_public,
)
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import read_fields
from webapp.runs.clients import find_run_among
from webapp.tinker import weights
from webapp.tinker.catalog_views import cut_page, list_readable
from webapp.tinker.describing import describe_checkpoint
from webapp.tinker.endpoints import TinkerRequest, endpoint
from webapp.tinker.services import describe_optimizer

VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.")


def leave_out_unknown(request: TinkerRequest, rows: CheckpointQuerySet) -> CheckpointQuerySet:
    """An SDK fails on a list with a kind that it does not know: before 0.28 on exported weights."""
    version = VERSION.match(request.headers.get("X-Stainless-Package-Version", ""))
    is_old = version is not None and (int(version[1]), int(version[2])) < (0, 28)
    return rows.exclude(kind=Checkpoint.Kind.EXTERNAL) if is_old else rows


def list_checkpoints(actor: Actor) -> CheckpointQuerySet:
    saved = Checkpoint.objects.in_project(actor).alive().filter(is_ephemeral=False)
    return saved.select_related("run")


@endpoint("GET")
def checkpoints(request: TinkerRequest) -> JsonResponse:
    page, cursor = cut_page(request, leave_out_unknown(request, list_checkpoints(request.actor)))
    described = [describe_checkpoint(checkpoint) for checkpoint in page]
    return JsonResponse({"checkpoints": described, "cursor": cursor})


@endpoint("GET")
def run_checkpoints(request: TinkerRequest, run_id: str) -> JsonResponse:
    """All of them, unless a limit is given: the SDK asks once. Of others' runs, the public ones."""
    run = find_run_among(list_readable(request.actor), run_id)
    mine_or_public = Q(project=request.actor.project) | Q(is_public=True)
    saved = Checkpoint.objects.alive().filter(mine_or_public, run=run, is_ephemeral=False)
    rows = leave_out_unknown(request, saved.select_related("run"))
    if "limit" not in request.GET:
        return JsonResponse({"checkpoints": [describe_checkpoint(row) for row in rows]})
    page, cursor = cut_page(request, rows)
    described = [describe_checkpoint(checkpoint) for checkpoint in page]
    return JsonResponse({"checkpoints": described, "cursor": cursor})


def find_checkpoint(actor: Actor, run_id: str, kind: str, name: str) -> Checkpoint:
    """One that the actor owns: public ones of others are read, not changed."""
    if kind not in PATH_KINDS:
        words = " or ".join(f"'{word}/<name>'" for word in PATH_KINDS)
        said = f"{kind[:60]}/{name[:200]}"
        raise NotFound(f"Invalid checkpoint identifier. Expected format {words}, not {said}.")
    checkpoint = find_by_tinker_path(actor, f"tinker://{run_id}/{kind}/{name}")
    if not Checkpoint.objects.visible_to(actor).filter(pk=checkpoint.pk).exists():
        raise NotFound(f"There is no checkpoint {kind}/{name} of {run_id}.")
    return checkpoint


@endpoint("DELETE")
def checkpoint(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    found = find_checkpoint(request.actor, run_id, kind, name)
    delete_checkpoint(actor=request.actor, checkpoint=found)
    return HttpResponse(status=204)


@endpoint("POST", "DELETE")
def publish(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    found = find_checkpoint(request.actor, run_id, kind, name)
    set_public(actor=request.actor, checkpoint=found, is_public=request.method == "POST")
    return HttpResponse(status=204)


@endpoint("PUT")
def ttl(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    fields = read_fields(request.body)
    seconds = read_ttl(fields) if fields.has("ttl_seconds") else None
    found = find_checkpoint(request.actor, run_id, kind, name)
    set_lifetime(actor=request.actor, checkpoint=found, ttl_seconds=seconds)
    return HttpResponse(status=204)


@endpoint("GET")
def external_weights_urls(
    request: TinkerRequest, run_id: str, kind: str, name: str
) -> JsonResponse:
    """A link a file, under the address that the request came to."""
    found = find_by_tinker_path(request.actor, f"tinker://{run_id}/{kind}/{name}")
    if not found.is_external:
        raise UserError(
            f"{found.tinker_path} has no urls: only external_weights have, which"
            " save_weights_external saves."
        )
    files = [path.name for path in find_files(found)]
    expires = datetime.now(UTC) + links.LIFETIME
    urls = {file: links.write_url(request, found, file) for file in files}
    return JsonResponse({"urls": urls, "expires": expires.isoformat()})


@endpoint("GET")
def archive(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    """For older SDKs: they take the address out of the redirect, and fetch it without a key."""
    found = find_by_tinker_path(request.actor, f"tinker://{run_id}/{kind}/{name}")
    response = HttpResponseRedirect(links.write_url(request, found, links.ARCHIVE))
    response.headers["Expires"] = http_date((datetime.now(UTC) + links.LIFETIME).timestamp())
    return response


@endpoint("POST")
def copy_weights(request: TinkerRequest) -> JsonResponse:
    copy = weights.copy_weights(
        actor=request.actor,
        fields=read_fields(request.body),
        access_token=request.headers.get("X-Tinker-Weights-Access-Token", ""),
        idempotency_key=request.headers.get("X-Idempotency-Key", ""),
    )
    return JsonResponse({"tinker_path": copy.tinker_path})


@endpoint("POST")
def weights_info(request: TinkerRequest) -> JsonResponse:
    path = read_fields(request.body).text("tinker_path")
    found = find_by_tinker_path(request.actor, path)
    flags = ("train_unembed", "train_mlp", "train_attn")
    return JsonResponse(
        {
            "base_model": found.run.model_name,
            "is_lora": not found.is_full,
            "lora_rank": found.rank or None,
            "optimizer_config": describe_optimizer(found.run.optimizer),
            **{flag: found.run.lora.get(flag, True) for flag in flags},
        }
    )
