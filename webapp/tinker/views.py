"""The Tinker wire, training side: sessions, models, and the operations of their logs."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from webapp.core.errors import NotFound
from webapp.core.fields import read_fields
from webapp.fleet.capacity import read_capacity
from webapp.runs.clients import find_run, find_session
from webapp.runs.models import Operation, Run
from webapp.runs.services import finish_session
from webapp.tinker import services, weights
from webapp.tinker.endpoints import TinkerRequest, endpoint, is_on_this_machine
from webapp.wire import passes

Kind = Operation.Kind


def healthz(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


@endpoint("POST")
def config(request: TinkerRequest) -> JsonResponse:
    """What the SDK does where it has a choice."""
    return JsonResponse(
        {
            # It costs more than it saves where the bytes cross no wire.
            "proto_compress_fwdbwd": not is_on_this_machine(request),
            "custom_loss_server_side": True,
            "pjwt_auth_enabled": True,
            "sample_use_retrieve_futures": True,
            "sample_join_sampling_session": True,
            # Before 0.25 training passes go as protobuf, `forward` among them, on these words.
            "proto_write_fwdbwd": True,
            "fwd_via_fwdbwd": True,
        }
    )


@endpoint("POST")
def dynamic_config(_request: TinkerRequest) -> JsonResponse:
    return JsonResponse({"sample_cancel_enabled": True})


@csrf_exempt
def telemetry(_request: HttpRequest) -> JsonResponse:
    """Taken and dropped, without a look at the key: the SDK waits for this before it raises."""
    return JsonResponse({"status": "accepted"})


@endpoint("POST")
def create_session(request: TinkerRequest) -> JsonResponse:
    session = services.open_client_session(
        actor=request.actor,
        fields=read_fields(request.body),
        idempotency_key=request.headers.get("X-Idempotency-Key", ""),
    )
    capacity = read_capacity()
    return JsonResponse(
        {
            "type": "create_session",
            "session_id": session.pk,
            # A poller of samples is told nothing while it waits: here the SDK logs it once.
            "warning_message": capacity.sampling or capacity.training or None,
        }
    )


@endpoint("POST")
def finish(request: TinkerRequest, session_id: str) -> HttpResponse:
    """The first one counts, and a repeated one is no mistake."""
    fields = read_fields(request.body)
    session = find_session(request.actor, session_id)
    reason = fields.inner("reason").text("type", "success")
    finish_session(session, reason=reason[:20], detail=fields.text("detail", ""))
    return HttpResponse(status=204)


@endpoint("POST")
def create_model(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    return promise(services.create_model(actor=request.actor, fields=fields))


@endpoint("POST")
def get_info(request: TinkerRequest) -> JsonResponse:
    run = find_run(request.actor, read_fields(request.body).text("model_id"))
    return JsonResponse(describe_model(run, is_local=is_on_this_machine(request)))


def describe_model(run: Run, *, is_local: bool) -> dict[str, object]:
    name = run.model_name
    data = {"arch": run.base_model.architecture, "model_name": name}
    if is_local:
        # The SDK loads the tokenizer from here instead of looking the name up on the internet:
        # right where it shares our disk, a path that does not exist for everybody else.
        data["tokenizer_id"] = run.base_model.path
    return {
        "type": "get_info",
        "model_id": run.model_id,
        "model_data": data,
        "optimizer_config": services.describe_optimizer(run.optimizer),
        "is_lora": not run.is_full,
        "lora_rank": run.rank or None,
        "model_name": name,
    }


@endpoint("POST")
def forward_backward(request: TinkerRequest) -> JsonResponse:
    encoding = request.headers.get("Content-Encoding", "")
    body = passes.decompress(request.body, encoding)
    return promise(services.forward_backward(actor=request.actor, body=body))


@endpoint("POST")
def create_custom_loss(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    loss = services.store_custom_loss(actor=request.actor, fields=fields)
    return JsonResponse({"request_id": loss.pk})


@endpoint("POST")
def optim_step(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    return promise(services.optim_step(actor=request.actor, fields=fields))


@endpoint("POST")
def save_weights(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    kind = Kind.SAVE_WEIGHTS
    return promise(weights.save_weights(actor=request.actor, fields=fields, kind=kind))


@endpoint("POST")
def save_weights_for_sampler(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    kind = Kind.SAVE_WEIGHTS_FOR_SAMPLER
    return promise(weights.save_weights(actor=request.actor, fields=fields, kind=kind))


@endpoint("POST")
def save_weights_external(request: TinkerRequest) -> JsonResponse:
    fields = read_fields(request.body)
    kind = Kind.SAVE_WEIGHTS_EXTERNAL
    return promise(weights.save_weights(actor=request.actor, fields=fields, kind=kind))


@endpoint("POST")
def load_weights(request: TinkerRequest) -> JsonResponse:
    """With a model_seq_id it makes a model from a checkpoint, with a model_id it changes one."""
    fields = read_fields(request.body)
    load = weights.create_model_from_checkpoint
    if fields.has("model_id"):
        load = weights.load_weights
    return promise(load(actor=request.actor, fields=fields))


def promise(operation: Operation) -> JsonResponse:
    return JsonResponse({"request_id": operation.request_id, "model_id": operation.run.model_id})


@endpoint("GET", "POST", "PUT", "DELETE", "PATCH")
def answer_unknown(request: TinkerRequest) -> HttpResponse:
    raise NotFound(f"{request.method} {request.path} is not offered by this installation.")
