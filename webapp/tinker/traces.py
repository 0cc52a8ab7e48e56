"""When a session's requests waited and ran, in the JSON that Perfetto and Chrome's tracing read."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any

from django.core import signing
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from webapp.deployments.models import SamplingCall
from webapp.runs.models import Operation, Session

LIFETIME = timedelta(hours=1)
SALT = "webapp.tinker.traces"
MOST_REQUESTS = 50_000  # of each kind, the newest ones
AT_ONCE = 2000  # rows and events in memory

Times = tuple[datetime, datetime | None, datetime | None]  # created, started, finished


def write_url(request: HttpRequest, session: Session) -> str:
    """Absolute, under the host that the request came by; whoever holds it may read the trace."""
    token = signing.dumps(session.pk, salt=SALT)
    path = reverse("session-trace", args=[session.pk])
    return request.build_absolute_uri(f"{path}?{urlencode({'token': token})}")


def find_refusal(token: str, session_id: str) -> str:
    """Why this token does not open this trace; empty where it does."""
    try:
        signed = signing.loads(token, salt=SALT, max_age=LIFETIME)
    except signing.SignatureExpired:
        return "This link has expired: export the trace again."
    except signing.BadSignature:
        return "This link's token is missing or was changed: take the whole url as it was given."
    return "" if signed == session_id else "This link's token is for another session."


def write_trace(session: Session) -> Iterator[bytes]:
    """A process for each run and each sampling client. That of a long session is 60 MB of JSON."""
    details = {"session_id": session.pk, "display_name": session.display_name}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": details})
    events = chain(trace_operations(session), trace_calls(session))
    joint = head.removesuffix("}") + ', "traceEvents": ['
    while piece := list(islice(events, AT_ONCE)):
        yield (joint + ",\n".join(json.dumps(event) for event in piece)).encode()
        joint = ",\n"
    yield (joint.removesuffix(",\n") + "]}").encode()


def trace_operations(session: Session) -> Iterator[dict[str, Any]]:
    rows = Operation.objects.filter(run__session=session).order_by("-pk")
    columns = ("run_id", "run__name", "run__model_seq_id", "pk", "seq", "kind", "status")
    seen: set[str] = set()
    for run_id, name, number, pk, seq, kind, status, tokens, *times in rows.values_list(
        *columns, "num_tokens", "created_at", "started_at", "finished_at"
    )[:MOST_REQUESTS].iterator(AT_ONCE):
        pid = 2 * number + 1
        if run_id not in seen:
            seen.add(run_id)
            yield name_process(pid, f"{name} ({session.pk}:train:{number})")
        details = {"seq": seq, "status": status, "tokens": tokens}
        yield from trace_one(pid, f"op-{pk}", kind, details, (times[0], times[1], times[2]))


def trace_calls(session: Session) -> Iterator[dict[str, Any]]:
    rows = SamplingCall.objects.filter(sampling_session__session=session).order_by("-pk")
    columns = ("sampling_session_id", "sampling_session__seq_id", "pk", "seq_id", "status")
    seen: set[str] = set()
    for sampler_id, number, pk, seq, status, *times in rows.values_list(
        *columns, "created_at", "started_at", "finished_at"
    )[:MOST_REQUESTS].iterator(AT_ONCE):
        pid = 2 * number + 2
        if sampler_id not in seen:
            seen.add(sampler_id)
            yield name_process(pid, f"samples of {sampler_id}")
        details = {"seq_id": seq, "status": status}
        yield from trace_one(pid, f"call-{pk}", "sample", details, (times[0], times[1], times[2]))


def name_process(pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}


def trace_one(
    pid: int, request_id: str, kind: str, details: dict[str, Any], times: Times
) -> Iterator[dict[str, Any]]:
    """Requests overlap, so each part has a beginning and an end of its own name."""
    created_at, started_at, finished_at = times
    waited_until = started_at or finished_at
    yield from trace_span(pid, f"{request_id} queued", f"{kind} queued", details, created_at)
    if waited_until is not None:
        yield end_span(pid, f"{request_id} queued", f"{kind} queued", waited_until)
    if started_at is not None:
        yield from trace_span(pid, request_id, kind, details, started_at)
        if finished_at is not None:
            yield end_span(pid, request_id, kind, finished_at)


def trace_span(
    pid: int, span_id: str, name: str, details: dict[str, Any], at: datetime
) -> Iterator[dict[str, Any]]:
    yield make_event("b", pid, span_id, name, at) | {"args": details}


def end_span(pid: int, span_id: str, name: str, at: datetime) -> dict[str, Any]:
    return make_event("e", pid, span_id, name, at)


def make_event(phase: str, pid: int, span_id: str, name: str, at: datetime) -> dict[str, Any]:
    microseconds = int(at.timestamp() * 1_000_000)
    return {
        "ph": phase,
        "cat": name,
        "id": span_id,
        "name": name,
        "pid": pid,
        "tid": 1,
        "ts": microseconds,
    }
