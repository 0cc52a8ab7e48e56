"""Looks at a run with every diagnostic, and keeps what each of them says."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.db.models import F, Q
from django.utils.timezone import now

from webapp.core.dispatch import DIAGNOSE_RUN, send_task
from webapp.runs.diagnostics import DIAGNOSTICS, State
from webapp.runs.findings import end_finding, keep_look, note_finding, take_look
from webapp.runs.models import Run, RunQuerySet
from webapp.runs.records import Look, ProjectThreshold
from webapp.runs.thresholds import DEFAULTS, Limits, read_limits
from workers.diagnosing import (
    checkpoint_will_expire,
    export_differs,
    memorising,
    non_finite_or_spiking,
    off_policy,
    reward_hacking,
    sampler_trainer_disagree,
    sequential_client,
    stale_sampler,
    zero_signal_groups,
)
from workers.diagnosing.verdict import Verdict

REST = timedelta(seconds=8)  # between two looks at a run that goes on
SHORT_REST = timedelta(milliseconds=500)  # several messages may have waited for this one
LONG_REST = timedelta(minutes=1)  # where nothing came in its log
MOST = 200  # runs that are sent for at once

LOOKS: Mapping[str, Callable[[Run, Mapping[str, Any], Limits], Verdict]] = {
    "sequential_client": sequential_client.look,
    "stale_sampler": stale_sampler.look,
    "sampler_trainer_disagree": sampler_trainer_disagree.look,
    "zero_signal_groups": zero_signal_groups.look,
    "checkpoint_will_expire": checkpoint_will_expire.look,
    "non_finite_or_spiking": non_finite_or_spiking.look,
    "memorising": memorising.look,
    "reward_hacking": reward_hacking.look,
    "off_policy": off_policy.look,
    "export_differs": export_differs.look,
}

logger = logging.getLogger(__name__)


def diagnose(run_id: str) -> None:
    """Each look reads a bounded piece of the log. Twice at once is one."""
    run = Run.objects.select_related("base_model", "project").filter(pk=run_id).first()
    if run is None:
        return
    seen = Look.objects.filter(run=run).values_list("looked_at", flat=True).first()
    if seen is not None and seen > now() - SHORT_REST:
        return
    look = take_look(run, seen=seen, moment=now())
    if look is None:
        return
    limits = read_limits(run.project_id)
    verdicts = {
        each.key: LOOKS[each.key](run, look.memory.get(each.key, {}), limits)
        for each in DIAGNOSTICS
    }
    for key, verdict in verdicts.items():
        settle(run, key, verdict)
    keep_look(
        look,
        states={
            key: {"state": each.state.value, "text": each.text} for key, each in verdicts.items()
        },
        memory={key: dict(each.memory) for key, each in verdicts.items() if each.memory},
    )


def settle(run: Run, key: str, verdict: Verdict) -> None:
    """What cannot be seen any more, such as a log that is forgotten, has not ended by that."""
    if verdict.state == State.FOUND:
        note_finding(
            run,
            key,
            step=verdict.step,
            text=verdict.text,
            facts=verdict.facts,
            level=verdict.level,
        )
    else:
        end_finding(run, key)


def fail(run_id: str, error: str) -> None:
    """The next change of the run is the next try."""
    logger.error("%s could not be diagnosed: %s", run_id, error)


def announce_due() -> int:
    """Send for runs in which something came since they were looked at. Returns how many."""
    due = set(list_changed()) | set(list_ending()) | set(list_compared())
    for run_id in due:
        send_task(DIAGNOSE_RUN, run_id)
    return len(due)


def _rested(rest: timedelta) -> RunQuerySet:
    return Run.objects.filter(
        Q(look=None) | Q(look__looked_at=None) | Q(look__looked_at__lt=now() - rest)
    )


def list_changed() -> list[str]:
    """Those that run are looked at now and then anyway: samples are in no log."""
    never = Q(look=None) | Q(look__looked_at=None)
    changed = Q(look__looked_at__lt=F("last_request_at")) | Q(look__looked_at__lt=F("ended_at"))
    goes_on = Q(status=Run.Status.RUNNING, look__looked_at__lt=now() - LONG_REST)
    due = _rested(REST).filter(never | changed | goes_on)
    return list(
        due.order_by(F("last_request_at").desc(nulls_last=True)).values_list("pk", flat=True)[:MOST]
    )


def list_ending() -> list[str]:
    """Runs with checkpoints that end soon, and those of which that was said."""
    ending = Q(checkpoints__deleted_at=None, checkpoints__is_ephemeral=False) & is_soon()
    said = Q(findings__diagnostic="checkpoint_will_expire", findings__ended_at=None)
    due = _rested(LONG_REST)
    return [
        pk for one in (ending, said) for pk in due.filter(one).values_list("pk", flat=True)[:MOST]
    ]


def is_soon() -> Q:
    """By the default, or earlier where the project wants to know earlier."""
    soon = Q(checkpoints__expires_at__lt=now() + timedelta(hours=DEFAULTS.expires_hours))
    own = ProjectThreshold.objects.filter(key="expires_hours", value__gt=DEFAULTS.expires_hours)
    for project_id, hours in own.values_list("project", "value"):
        until = now() + timedelta(hours=hours)
        soon |= Q(project=project_id, checkpoints__expires_at__lt=until)
    return soon


def list_compared() -> list[str]:
    """Runs of which something was exported or loaded since."""
    exported = Q(checkpoints__exports__ended_at__gt=F("look__looked_at"))
    loaded = Q(checkpoints__hot_loads__created_at__gt=F("look__looked_at") - LONG_REST)
    one = list(_rested(REST).filter(exported).values_list("pk", flat=True)[:MOST])
    return one + list(_rested(LONG_REST).filter(loaded).values_list("pk", flat=True)[:MOST])
