"""The playground: one prompt to two models side by side, turn after turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.forms import BoundField
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.forms import show_errors
from webapp.datasets.models import Dataset
from webapp.deployments.conversation import (
    SIDES,
    Answer,
    Turns,
    find_call,
    find_system,
    name_target,
    read_answer,
    read_answers,
    read_turns,
    write_messages,
    write_query,
)
from webapp.deployments.forms import KeepForm, PlaygroundForm
from webapp.deployments.keeping import keep_answer, stop_answer
from webapp.deployments.models import Deployment, SamplingCall
from webapp.deployments.services import ask
from webapp.deployments.views import find_target
from webapp.deployments.watching import watches

NUM_ALTERNATIVES = 5
DATASETS_OFFERED = 100
SETTINGS = (*PlaygroundForm.PARAMS, "system")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """One side: the chooser of its model, and what was said."""

    label: str
    field: BoundField
    answers: Sequence[Answer]
    hint: str


@login_required
@require_http_methods(["GET", "POST"])
def show_playground(request: ActorRequest) -> HttpResponse:
    turns = read_turns(request.actor, request.GET)
    if request.method == "POST":
        check_can_write(request.actor)
        form = PlaygroundForm(request.POST, actor=request.actor)
        if form.is_valid():
            with show_errors(form):
                return redirect(_send(request.actor, form.cleaned_data, turns))
    else:
        form = PlaygroundForm(actor=request.actor, initial=_choose_initial(request, turns))
    context = {
        "form": form,
        "panes": make_panes(form, read_answers(turns)),
        "query": write_query(turns),
        "restart": _write_restart(turns),
        "is_empty": not any(turns.values()),
        "has_models": bool(form.fields["left"].choices),  # type: ignore[attr-defined]
        "settings_word": describe_settings(form),
        "has_settings": any(form[name].errors for name in SETTINGS),
        "keep_form": KeepForm(),
        "datasets": Dataset.objects.in_project(request.actor)[:DATASETS_OFFERED],
    }
    status = 400 if form.errors else 200
    return render(request, "playground/playground.html", context, status=status)


def make_panes(form: PlaygroundForm, answers: Mapping[str, Sequence[Answer]]) -> list[Pane]:
    hints = {
        "left": "Answers of the model chosen above appear here.",
        "right": "Its answers to the same prompts, drawn with the same seed, appear here."
        if form["right"].value()
        else "Choose a second model to see both answers to the same prompt, drawn with the same"
        " seed.",
    }
    return [
        Pane(label=f"{side} model", field=form[side], answers=answers[side], hint=hints[side])
        for side in SIDES
    ]


def describe_settings(form: PlaygroundForm) -> str:
    values = {name: form[name].value() for name in PlaygroundForm.PARAMS}
    temperature = str(values["temperature"]).removesuffix(".0")
    words = [f"temperature {temperature}", f"at most {values['max_tokens']} tokens"]
    words += [f"top p {values['top_p']}"] if values["top_p"] not in (None, "") else []
    words += [f"top k {values['top_k']}"] if values["top_k"] not in (None, "") else []
    words.append(f"seed {values['seed']}")
    words += ["own stop texts"] if values["stop"] else []
    words += ["a system prompt"] if form["system"].value() else []
    return ", ".join(words)


def _write_restart(turns: Turns) -> str:
    """The same two models with the same settings, and nothing said yet."""
    chosen: dict[str, Any] = {}
    for side, calls in turns.items():
        if calls:
            chosen |= _read_settings(calls[-1]) | {side: name_target(calls[-1])}
    if "stop" in chosen:
        chosen["stop"] = PlaygroundForm.base_fields["stop"].prepare_value(chosen["stop"])
    return f"{reverse('playground')}?{urlencode(chosen)}"


def _read_settings(call: SamplingCall) -> dict[str, Any]:
    system = find_system(call)
    params: dict[str, Any] = call.payload["params"]
    return params | ({"system": system} if system else {})


@transaction.atomic
def _send(actor: Actor, chosen: dict[str, Any], turns: Turns) -> str:
    """Ask all chosen models or none; the address of the conversation with the new turn."""
    following = {}
    params = {name: chosen[name] for name in PlaygroundForm.PARAMS}
    for side in SIDES:
        following[side] = list(turns[side])
        if chosen[side]:
            call = ask(
                actor=actor,
                messages=write_messages(turns[side], chosen["system"], chosen["prompt"]),
                params=params,
                is_streamed=True,
                num_alternatives=NUM_ALTERNATIVES,
                **choose_target(actor, chosen[side]),
            )
            following[side].append(call)
            watches.expect([call.pk])
    return f"{reverse('playground')}?{write_query(following)}"


def choose_target(actor: Actor, target: str) -> dict[str, Any]:
    """The keyword arguments of `ask` for an id of whatever kind."""
    deployments = Deployment.objects.visible_to(actor).select_related("base_model", "checkpoint")
    deployment = deployments.filter(pk=target).first()
    if deployment is not None:
        return {"deployment": deployment}
    checkpoint, base_model = find_target(actor, target)
    return {"checkpoint": checkpoint, "base_model": base_model}


def _choose_initial(request: ActorRequest, turns: Turns) -> dict[str, Any]:
    """As the last turn was asked; else as the link says, a checkpoint beside its base model."""
    initial: dict[str, Any] = {
        name: request.GET[name] for name in (*SETTINGS, "prompt", "left") if name in request.GET
    }
    initial["right"] = (
        request.GET["right"]
        if "right" in request.GET
        else _find_base(request.actor, initial.get("left", ""))
    )
    for side in SIDES:
        if turns[side]:
            last = turns[side][-1]
            initial |= {side: name_target(last)} | _read_settings(last)
    if turns["left"] and not turns["right"]:
        initial["right"] = ""
    return initial


def _find_base(actor: Actor, target: str) -> str:
    """What to see a checkpoint or a deployment beside: its base model as it is."""
    if not target:
        return ""
    found = choose_target(actor, target)
    served = found.get("deployment") or found.get("checkpoint")
    return str(served.base_model_id) if served else ""


@login_required
@require_GET
def show_answer(request: ActorRequest, call_id: int) -> HttpResponse:
    """Asked while a call is under way; where nothing has changed the page stays as it is."""
    call = find_call(request.actor, call_id)
    if call.status == request.GET.get("shown"):
        return HttpResponse(status=204)
    return _render_answer(request, call)


def _render_answer(request: ActorRequest, call: SamplingCall) -> HttpResponse:
    answer = read_answers({"": [call]})[""][0]
    return render(request, "playground/_answer.html", {"answer": answer})


@login_required
@require_GET
def list_alternatives(request: ActorRequest, call_id: int) -> JsonResponse:
    """At each place of an answer the likeliest tokens; fetched when somebody looks at one."""
    answer = read_answer(find_call(request.actor, call_id))
    return JsonResponse({"alternatives": answer.alternatives})


@login_required
@require_POST
def cancel(request: ActorRequest, call_id: int) -> HttpResponse:
    call = find_call(request.actor, call_id)
    check_can_write(request.actor, project_id=call.project_id)
    stop_answer(call=call, said=watches.find_text(call_id))
    return _render_answer(request, call)


@login_required
@require_POST
def keep(request: ActorRequest, call_id: int) -> HttpResponse:
    """Said inside the dialog that asked, whether it was kept or not."""
    call = find_call(request.actor, call_id)
    check_can_write(request.actor)
    form = KeepForm(request.POST)
    context: dict[str, Any] = {"keep_form": form, "call": call}
    if form.is_valid():
        with show_errors(form):
            name = form.cleaned_data["name"]
            context["kept"] = keep_answer(actor=request.actor, call=call, name=name)
    return render(request, "playground/_keep.html", context)
