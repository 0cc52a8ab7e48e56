"""The trainer of a job, as its program's clients speak to it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from webapp.core.fields import read_fields
from webapp.firetitan import trainer_passes, trainer_services, trainer_weights
from webapp.firetitan.endpoints import FiretitanRequest, endpoint
from webapp.firetitan.errors import refuse
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.services import find_job, refresh_state
from webapp.fleet.capacity import read_capacity
from webapp.runs.models import Operation, Run

TrainerView = Callable[[FiretitanRequest, TrainerJob], HttpResponse]


def trainer(*methods: str) -> Callable[[TrainerView], Callable[..., HttpResponse]]:
    """The job is the one in the path."""

    def decorate(view: TrainerView) -> Callable[..., HttpResponse]:
        @endpoint(*methods)
        @wraps(view)
        def answer(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
            return view(request, find_job(request.actor, account, job_id))

        return answer

    return decorate


@trainer("GET")
def healthz(_request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    """The program goes on as soon as this is a 200."""
    standing = refresh_state(job)
    if standing.state != TrainerJob.State.RUNNING:
        return refuse(standing.reason or f"The trainer job is {standing.state}.", 409)
    return JsonResponse({"status": "ok"})


@csrf_exempt
def telemetry(_request: HttpRequest, **_: str) -> JsonResponse:
    """Taken and dropped, without a look at the key: it comes after the job was deleted, too."""
    return JsonResponse({"status": "accepted"})


@trainer("POST")
def client_config(_request: FiretitanRequest, _job: TrainerJob) -> HttpResponse:
    """What the SDK does where it has a choice: only keys that begin with tml- make it ask."""
    return JsonResponse(
        {
            "pjwt_auth_enabled": False,
            "parallel_fwdbwd_chunks": True,
            "use_pyqwest_transport": True,
            "proto_write_fwdbwd": False,
            "proto_compress_fwdbwd": False,
            "fwd_via_fwdbwd": False,
        }
    )


@trainer("POST")
def create_session(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    session = trainer_services.open_trainer_session(
        actor=request.actor,
        job=job,
        fields=read_fields(request.body),
        idempotency_key=request.headers.get("X-Idempotency-Key", ""),
    )
    return JsonResponse(
        {
            "type": "create_session",
            "session_id": session.pk,
            "warning_message": read_capacity().training or None,
        }
    )


@trainer("GET")
def capabilities(_request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    model = {"model_name": job.asked_model, "max_context_length": job.max_context_length}
    return JsonResponse({"supported_models": [model] if job.base_model else []})


@trainer("POST")
def create_model(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    fields = read_fields(request.body)
    return promise(trainer_services.create_model(actor=request.actor, job=job, fields=fields))


@trainer("POST")
def get_info(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    model_id = read_fields(request.body).text("model_id")
    return JsonResponse(describe_model(trainer_services.find_model(job, model_id)))


def describe_model(run: Run) -> dict[str, Any]:
    name = run.model_name
    return {
        "type": "get_info",
        "model_id": run.model_id,
        "model_data": {"arch": run.base_model.architecture, "model_name": name},
        "is_lora": not run.is_full,
        "lora_rank": run.rank or None,
        "model_name": name,
    }


@trainer("POST")
def forward(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    fields = read_fields(request.body)
    return promise(
        trainer_passes.run_pass(job=job, fields=fields, body=request.body, forward_only=True)
    )


@trainer("POST")
def forward_backward(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    fields = read_fields(request.body)
    return promise(
        trainer_passes.run_pass(job=job, fields=fields, body=request.body, forward_only=False)
    )


@trainer("POST")
def optim_step(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    return promise(trainer_passes.optim_step(job=job, fields=read_fields(request.body)))


@trainer("POST")
def save_weights(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    return promise(trainer_weights.save_state(job=job, fields=read_fields(request.body)))


@trainer("POST")
def save_weights_for_sampler(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    return promise(trainer_weights.save_for_sampler(job=job, fields=read_fields(request.body)))


@trainer("POST")
def load_weights(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    fields = read_fields(request.body)
    return promise(trainer_weights.load_state(actor=request.actor, job=job, fields=fields))


@trainer("POST")
def load_adapter(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    fields = read_fields(request.body)
    return promise(trainer_weights.load_adapter(actor=request.actor, job=job, fields=fields))


@trainer("GET")
def list_checkpoints(_request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    return JsonResponse({"checkpoints": trainer_weights.list_names(job)})


@trainer("POST")
def unload_model(request: FiretitanRequest, job: TrainerJob) -> HttpResponse:
    return promise(trainer_services.unload_model(job=job, fields=read_fields(request.body)))


def promise(operation: Operation) -> JsonResponse:
    return JsonResponse({"request_id": operation.request_id, "model_id": operation.run.model_id})
