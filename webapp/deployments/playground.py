"""The playground: one prompt to two models side by side, turn after turn.

The calls themselves are the conversation: the URL names them, so a reload, a bookmark and a
colleague of the same project see the same answers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.db.models import QuerySet
from django.forms import BoundField
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors
from webapp.datasets.tokens import ShownToken, show_sampled
from webapp.deployments.calls import cancel_call
from webapp.deployments.forms import PlaygroundForm
from webapp.deployments.models import Deployment, SamplingCall
from webapp.deployments.services import ask
from webapp.deployments.views import find_target

SIDES = ("left", "right")
MAX_TURNS = 50

Status = SamplingCall.Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One call as a pane shows it."""

    call: SamplingCall
    prompt: str
    text: str = ""
    tokens: Sequence[ShownToken] = ()
    stop_reason: str = ""
    adapter: str = ""
    digest: str = ""

    @property
    def is_pending(self) -> bool:
        return self.call.status in (Status.QUEUED, Status.RUNNING)

    @property
    def waiting_word(self) -> str:
        return "waits for a sampler" if self.call.status == Status.QUEUED else "answering"

    @property
    def seconds(self) -> timedelta | None:
        if self.call.finished_at is None:
            return None
        return self.call.finished_at - self.call.created_at


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
    turns = {side: read_turns(request, side) for side in SIDES}
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
        "panes": make_panes(form, turns),
        "query": _write_query(turns),
        "restart": _write_restart(turns),
        "is_empty": not any(turns.values()),
        "has_models": bool(form.fields["left"].choices),  # type: ignore[attr-defined]
        "settings_word": describe_settings(form),
        "has_settings": any(form[name].errors for name in (*PlaygroundForm.PARAMS, "system")),
    }
    status = 400 if form.errors else 200
    return render(request, "playground/playground.html", context, status=status)


def make_panes(form: PlaygroundForm, turns: dict[str, list[SamplingCall]]) -> list[Pane]:
    hints = {
        "left": "Answers of the model chosen above appear here.",
        "right": "Its answers to the same prompts, drawn with the same seed, appear here."
        if form["right"].value()
        else "Choose a second model to see both answers to the same prompt, drawn with the same"
        " seed.",
    }
    return [
        Pane(
            label=f"{side} model",
            field=form[side],
            answers=[read_answer(call) for call in turns[side]],
            hint=hints[side],
        )
        for side in SIDES
    ]


def describe_settings(form: PlaygroundForm) -> str:
    values = {name: form[name].value() for name in PlaygroundForm.PARAMS}
    temperature = str(values["temperature"]).removesuffix(".0")
    words = f"temperature {temperature}, at most {values['max_tokens']} tokens"
    system = ", with a system prompt" if form["system"].value() else ""
    return f"{words}, seed {values['seed']}{system}"


def _write_restart(turns: dict[str, list[SamplingCall]]) -> str:
    """The same two models, and nothing said yet."""
    chosen = {side: name_target(calls[-1]) for side, calls in turns.items() if calls}
    return f"{reverse('playground')}?{urlencode(chosen)}"


def read_turns(request: ActorRequest, side: str) -> list[SamplingCall]:
    """The calls that `?left=12.15` names. A part that is not visible is left out."""
    numbers = request.GET.get(f"{side}-turns", "").split(".")[-MAX_TURNS:]
    ids = [int(number) for number in numbers if number.isdecimal() and len(number) < 18]
    found = find_calls(request.actor).in_bulk(ids)
    return [found[number] for number in ids if number in found]


def find_calls(actor: Actor) -> QuerySet[SamplingCall]:
    calls = SamplingCall.objects.visible_to(actor).filter(purpose=SamplingCall.Purpose.PLAYGROUND)
    return calls.select_related("base_model", "checkpoint__run", "hot_load").prefetch_related(
        "base_model__names"
    )


def read_answer(call: SamplingCall) -> Answer:
    prompt = call.payload["messages"][-1]["content"]
    if call.status != Status.DONE or call.result is None:
        return Answer(call=call, prompt=prompt)
    result = json.loads(bytes(call.result))
    sequence = result["sequences"][0]
    return Answer(
        call=call,
        prompt=prompt,
        text=sequence["text"],
        tokens=show_sampled(
            sequence.get("pieces", []), sequence["tokens"], sequence.get("logprobs") or []
        ),
        stop_reason=sequence["stop_reason"],
        adapter=result.get("adapter") or "",
        digest=result.get("digest") or "",
    )


@transaction.atomic
def _send(actor: Actor, chosen: dict[str, Any], turns: dict[str, list[SamplingCall]]) -> str:
    """Ask all chosen models or none; the address of the conversation with the new turn."""
    following = {}
    for side in SIDES:
        following[side] = list(turns[side])
        if chosen[side]:
            messages = write_messages(turns[side], chosen["system"], chosen["prompt"])
            params = {name: chosen[name] for name in PlaygroundForm.PARAMS}
            target = choose_target(actor, chosen[side])
            call = ask(actor=actor, messages=messages, params=params, **target)
            following[side].append(call)
    return f"{reverse('playground')}?{_write_query(following)}"


def write_messages(turns: Sequence[SamplingCall], system: str, prompt: str) -> list[dict[str, str]]:
    """What was said on this side so far. A turn that was not answered never happened."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for answer in map(read_answer, turns):
        if answer.call.status == Status.DONE and answer.text.strip():
            messages.append({"role": "user", "content": answer.prompt})
            messages.append({"role": "assistant", "content": answer.text})
    return [*messages, {"role": "user", "content": prompt}]


def choose_target(actor: Actor, target: str) -> dict[str, Any]:
    """The keyword arguments of `ask` for an id of whatever kind."""
    deployments = Deployment.objects.visible_to(actor).select_related("base_model", "checkpoint")
    deployment = deployments.filter(pk=target).first()
    if deployment is not None:
        return {"deployment": deployment}
    checkpoint, base_model = find_target(actor, target)
    return {"checkpoint": checkpoint, "base_model": base_model}


def _write_query(turns: dict[str, list[SamplingCall]]) -> str:
    return urlencode(
        {
            f"{side}-turns": ".".join(str(call.pk) for call in calls)
            for side, calls in turns.items()
            if calls
        },
        safe=".",
    )


def _choose_initial(request: ActorRequest, turns: dict[str, list[SamplingCall]]) -> dict[str, Any]:
    """As the last turn was asked; else the checkpoint of the link beside its base model."""
    initial: dict[str, Any] = {"left": request.GET.get("left", "")}
    initial["right"] = request.GET.get("right", "") or _find_base(request.actor, initial["left"])
    for side in SIDES:
        if turns[side]:
            last = turns[side][-1]
            initial[side] = name_target(last)
            initial |= last.payload["params"]
            first = last.payload["messages"][0]
            initial["system"] = first["content"] if first["role"] == "system" else ""
    if turns["left"] and not turns["right"]:
        initial["right"] = ""
    return initial


def name_target(call: SamplingCall) -> str:
    return str(call.about.get("deployment") or call.checkpoint_id or call.base_model_id)


def _find_base(actor: Actor, target: str) -> str:
    """What to see a checkpoint or a deployment beside: its base model as it is."""
    if not target:
        return ""
    found = choose_target(actor, target)
    served = found.get("deployment") or found.get("checkpoint")
    return str(served.base_model_id) if served else ""


def find_call(actor: Actor, call_id: int) -> SamplingCall:
    call = find_calls(actor).filter(pk=call_id).first()
    if call is None:
        raise NotFound(f"There is no call {call_id}.")
    return call


@login_required
@require_GET
def show_answer(request: ActorRequest, call_id: int) -> HttpResponse:
    """Asked while a call is under way; where nothing has changed the page stays as it is."""
    answer = read_answer(find_call(request.actor, call_id))
    if answer.is_pending and answer.call.status == request.GET.get("shown"):
        return HttpResponse(status=204)
    return render(request, "playground/_answer.html", {"answer": answer})


@login_required
@require_POST
def cancel(request: ActorRequest, call_id: int) -> HttpResponse:
    call = find_call(request.actor, call_id)
    check_can_write(request.actor, project_id=call.project_id)
    cancel_call(call)
    call.refresh_from_db()
    return render(request, "playground/_answer.html", {"answer": read_answer(call)})
