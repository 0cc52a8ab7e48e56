"""The Tinker wire, sampling side."""

from django.http import JsonResponse

from webapp.core.fields import read_fields
from webapp.deployments.calls import cancel_call, join_sampling_session
from webapp.deployments.models import SamplingCall
from webapp.tinker import sampling
from webapp.tinker.endpoints import TinkerRequest, endpoint


@endpoint("POST")
def create_sampling_session(request: TinkerRequest) -> JsonResponse:
    opened = sampling.create_session(actor=request.actor, fields=read_fields(request.body))
    return JsonResponse({"sampling_session_id": opened.pk, "type": "create_sampling_session"})


@endpoint("POST")
def join(request: TinkerRequest) -> JsonResponse:
    """A copy of a sampling client in another process counts its requests apart from the first."""
    sampler_id = read_fields(request.body).text("sampling_session_id")
    joined = sampling.find_sampler(request.actor, sampler_id)
    return JsonResponse({"client_counter": join_sampling_session(joined)})


@endpoint("GET")
def sampler(request: TinkerRequest, sampler_id: str) -> JsonResponse:
    found = sampling.find_sampler(request.actor, sampler_id)
    asked = found.checkpoint.run.asked_model if found.checkpoint else ""
    return JsonResponse(
        {
            "sampler_id": found.pk,
            "base_model": asked or found.base_model.name,
            "model_path": found.checkpoint.tinker_path if found.checkpoint else None,
        }
    )


@endpoint("POST")
def asample(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    call, sequence_ids = sampling.submit_sample(actor=request.actor, fields=fields)
    return JsonResponse({"request_id": call.request_id, "sample_sequence_ids": sequence_ids})


@endpoint("POST")
def cancel_future(request: TinkerRequest) -> JsonResponse:
    """Of sampling calls only: what is in a run's log stays there."""
    request_id = read_fields(request.body).text("request_id")
    number = request_id.removeprefix("call-")
    if number.isdecimal() and len(number) <= 18:
        calls = SamplingCall.objects.visible_to(request.actor).filter(pk=int(number))
        call = calls.defer("payload", "result").first()
        if call is not None:
            cancel_call(call)
    return JsonResponse({"request_id": request_id})
