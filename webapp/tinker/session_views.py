"""The Tinker wire, sessions as things to look up: lists, search, their project, their trace."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.http import require_safe

from webapp.core.fields import read_fields
from webapp.core.streams import StreamedResponse
from webapp.runs.clients import find_session
from webapp.runs.models import Session
from webapp.tinker import traces
from webapp.tinker.catalog_views import cut_page, read_scope
from webapp.tinker.endpoints import TinkerRequest, endpoint
from webapp.tinker.middleware import refuse
from webapp.tinker.moving import move_session
from webapp.tinker.session_search import describe_summary, write_metadata
from webapp.tinker.session_search import search as search_sessions


@endpoint("GET")
def sessions(request: TinkerRequest) -> JsonResponse:
    """Both scopes are the key's project: it sees no other."""
    read_scope(request)
    rows = Session.objects.in_project(request.actor).only("pk")
    page, _ = cut_page(request, rows)
    return JsonResponse({"sessions": [session.pk for session in page]})


@endpoint("GET")
def session(request: TinkerRequest, session_id: str) -> JsonResponse:
    read_scope(request)
    found = find_session(request.actor, session_id)
    return JsonResponse(
        {
            "training_run_ids": [run.model_id for run in found.runs.all()],
            "sampler_ids": list(found.sampling_sessions.values_list("pk", flat=True)),
            "user_metadata": write_metadata(found.user_metadata),
            "display_name": found.display_name or None,
        }
    )


@endpoint("POST")
def search(request: TinkerRequest) -> JsonResponse:
    page = search_sessions(request.actor, read_fields(request.body))
    cursor = None
    if page.has_more:
        last = page.sessions[-1]
        cursor = {"last_created_at": last.created_at.isoformat(), "last_session_id": last.pk}
    described = [describe_summary(each) for each in page.sessions]
    return JsonResponse({"sessions": described, "next_cursor": cursor})


@endpoint("PUT")
def project(request: TinkerRequest, session_id: str) -> HttpResponse:
    project_id = read_fields(request.body).text("project_id")
    found = find_session(request.actor, session_id)
    move_session(actor=request.actor, session=found, project_id=project_id)
    return HttpResponse(status=204)


@endpoint("GET")
def trace_export(request: TinkerRequest, session_id: str) -> JsonResponse:
    """Ready at once: it is made when it is fetched."""
    found = find_session(request.actor, session_id)
    return JsonResponse({"status": "ready", "url": traces.write_url(request, found)})


@require_safe
def trace(request: HttpRequest, session_id: str) -> HttpResponseBase:
    """Without a key: the link carries a token. Outside /api/, as what takes long to fetch is."""
    refusal = traces.find_refusal(request.GET.get("token", ""), session_id)
    if refusal:
        return refuse(refusal, 403)
    found = Session.objects.filter(pk=session_id).first()
    if found is None:
        return refuse(f"There is no session {session_id} any more.", 404)
    return StreamedResponse(traces.write_trace(found), content_type="application/json")
