"""What was said in the playground: its calls are the conversation, and the URL names them.

So a reload, a bookmark and a colleague of the same project see the same answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet

from webapp.accounts.models import Actor
from webapp.core.errors import NotFound
from webapp.datasets.models import DatasetVersion
from webapp.datasets.tokens import ShownToken, show_sampled
from webapp.deployments.models import SamplingCall

SIDES = ("left", "right")
MAX_TURNS = 50

Status = SamplingCall.Status
Turns = Mapping[str, list[SamplingCall]]


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
    engine: str = ""  # which answered, with its version
    alternatives: Sequence[Sequence[Any]] = ()  # at each token the likeliest: id, text, logprob
    kept: DatasetVersion | None = None

    @property
    def is_pending(self) -> bool:
        return self.call.status in (Status.QUEUED, Status.RUNNING)

    @property
    def is_done(self) -> bool:
        return self.call.status == Status.DONE

    @property
    def waiting_word(self) -> str:
        return "waits for a sampler" if self.call.status == Status.QUEUED else "answering"

    @property
    def seconds(self) -> timedelta | None:
        if self.call.finished_at is None:
            return None
        return self.call.finished_at - self.call.created_at

    @property
    def first_token(self) -> timedelta | None:
        if self.call.first_token_at is None:
            return None
        return self.call.first_token_at - self.call.created_at


def find_calls(actor: Actor) -> QuerySet[SamplingCall]:
    calls = SamplingCall.objects.visible_to(actor).filter(purpose=SamplingCall.Purpose.PLAYGROUND)
    whole = calls.select_related("base_model", "checkpoint__run", "deployment").defer(
        "checkpoint__probe"
    )
    return whole.prefetch_related("base_model__names")


def find_call(actor: Actor, call_id: int) -> SamplingCall:
    call = find_calls(actor).filter(pk=call_id).first()
    if call is None:
        raise NotFound(f"There is no call {call_id}.")
    return call


def read_turns(actor: Actor, query: Mapping[str, str]) -> dict[str, list[SamplingCall]]:
    """The calls that `left-turns=12.15` names. A part that is not visible is left out."""
    named = {side: _read_numbers(query.get(f"{side}-turns", "")) for side in SIDES}
    found = find_calls(actor).in_bulk([number for ids in named.values() for number in ids])
    return {
        side: [found[number] for number in ids if number in found] for side, ids in named.items()
    }


def _read_numbers(text: str) -> list[int]:
    numbers = text.split(".")[-MAX_TURNS:]
    return [int(number) for number in numbers if number.isdecimal() and len(number) < 18]


def read_answers(turns: Turns) -> dict[str, list[Answer]]:
    calls = [call for side in turns.values() for call in side]
    kept = DatasetVersion.objects.select_related("dataset").in_bulk(
        [call.about["kept"] for call in calls if "kept" in call.about]
    )
    return {side: [read_answer(call, kept) for call in calls] for side, calls in turns.items()}


def read_answer(call: SamplingCall, kept: Mapping[str, DatasetVersion] | None = None) -> Answer:
    said = {"call": call, "prompt": call.payload["messages"][-1]["content"]}
    if call.status != Status.DONE or call.result is None:
        return Answer(**said, text=call.about.get("said", ""))
    result = json.loads(bytes(call.result))
    sequence = result["sequences"][0]
    return Answer(
        **said,
        text=sequence["text"],
        tokens=show_sampled(
            sequence.get("pieces", []), sequence["tokens"], sequence.get("logprobs") or []
        ),
        stop_reason=sequence["stop_reason"],
        alternatives=sequence.get("alternatives") or (),
        adapter=result.get("adapter") or "",
        digest=result.get("digest") or "",
        engine=result.get("engine") or "",
        kept=(kept or {}).get(call.about.get("kept", "")),
    )


def write_messages(turns: Sequence[SamplingCall], system: str, prompt: str) -> list[dict[str, str]]:
    """What was said on this side so far. A turn that was not answered never happened."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for answer in map(read_answer, turns):
        if answer.is_done and answer.text.strip():
            messages.append({"role": "user", "content": answer.prompt})
            messages.append({"role": "assistant", "content": answer.text})
    return [*messages, {"role": "user", "content": prompt}]


def write_row(answer: Answer) -> dict[str, Any]:
    """The conversation up to this answer as a row to train on, and who gave the answer."""
    call = answer.call
    said = [*call.payload["messages"], {"role": "assistant", "content": answer.text}]
    answered_by = call.checkpoint.tinker_path if call.checkpoint else call.base_model.name
    return {"messages": said, "answered_by": answered_by, "digest": answer.digest}


def write_query(turns: Turns) -> str:
    named = {
        f"{side}-turns": ".".join(str(call.pk) for call in calls)
        for side, calls in turns.items()
        if calls
    }
    return urlencode(named, safe=".")


def name_target(call: SamplingCall) -> str:
    return str(call.deployment_id or call.checkpoint_id or call.base_model_id)


def find_system(call: SamplingCall) -> str:
    first = call.payload["messages"][0]
    return str(first["content"]) if first["role"] == "system" else ""
