"""Every write to suites, evaluations and their results."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable
from webapp.core.dispatch import BUILD_SUITE, EVALUATE, SETTLE_MOVES, send_task
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish, run_group
from webapp.datasets.models import DatasetVersion
from webapp.deployments import calls
from webapp.deployments.calls import cancel_calls, digest_payload, submit_calls
from webapp.deployments.models import SamplingCall
from webapp.deployments.services import check_params
from webapp.evals.models import AliasMove, EvalResult, EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

Status = Evaluation.Status

LIVE = (Status.QUEUED, Status.RUNNING)
ANNOUNCED = timedelta(seconds=10)  # then a message should have been heard
GRADERS = (
    "exact_match",
    "contains",
    "numeric",
    "regex",
    "valid_json",
    "json_equal",
    "accepted_call",
)
MAX_ITEMS = 2000
# Greedy: the same weights give the same answers, so a difference is the weights'.
SAMPLING = {"max_tokens": 256, "temperature": 0.0, "seed": 0}
HINTS_AN_EVALUATION = 50  # a page that follows a long one is told this often


def create_suite(  # noqa: PLR0913 - the form's fields, by name
    *,
    actor: Actor,
    name: str,
    dataset_version: DatasetVersion,
    graders: Sequence[Mapping[str, Any]],
    held_out_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> EvalSuite:
    """Freeze prompts: the rows that a run with this share and seed holds out. A task builds it."""
    name = name.strip()
    if not name:
        raise UserError("A suite needs a name.", field="name")
    if dataset_version.status != DatasetVersion.Status.READY:
        raise UserError(f"{dataset_version} is not ready.", field="dataset_version")
    selection = {"held_out_share": held_out_share, "seed": seed, "limit": limit}
    _check_selection(selection)
    try:
        with transaction.atomic():
            suite = EvalSuite.objects.create(
                project=actor.project,
                name=name,
                dataset_version=dataset_version,
                selection=selection,
                graders=_check_graders(graders),
                sampling=check_params({**SAMPLING, **(sampling or {})}),
            )
    except IntegrityError:
        raise UserError(f"There is a suite named {name} already.", field="name") from None
    send_task(BUILD_SUITE, suite.pk)
    publish(project_group(suite.project_id), "evals")
    return suite


def mark_built(suite: EvalSuite, items: Sequence[Mapping[str, Any]]) -> bool:
    """Freeze the items and start what waits for them. False: it was built already."""
    digest = digest_suite(items, suite.graders, suite.sampling)
    building = EvalSuite.objects.filter(pk=suite.pk, status=EvalSuite.Status.BUILDING)
    built = building.update(
        status=EvalSuite.Status.READY, items=list(items), num_items=len(items), digest=digest
    )
    if built != 1:
        return False
    for evaluation in suite.evaluations.filter(status=Status.QUEUED):
        send_task(EVALUATE, evaluation.pk)
    publish(project_group(suite.project_id), "evals")
    return True


def mark_suite_failed(suite: EvalSuite, error: str) -> None:
    building = EvalSuite.objects.filter(pk=suite.pk, status=EvalSuite.Status.BUILDING)
    building.update(status=EvalSuite.Status.FAILED, error=error)
    for evaluation in suite.evaluations.filter(status=Status.QUEUED):
        mark_failed(evaluation, f"The suite could not be built: {error}")
    publish(project_group(suite.project_id), "evals")


def digest_suite(
    items: Sequence[Mapping[str, Any]],
    graders: Sequence[Mapping[str, Any]],
    sampling: Mapping[str, Any],
) -> str:
    frozen = json.dumps([items, graders, sampling], sort_keys=True)
    return sha256(frozen.encode()).hexdigest()


def request_evaluation(
    *,
    actor: Actor | None,
    suite: EvalSuite,
    checkpoint: Checkpoint | None = None,
    base_model: BaseModel | None = None,
    run: Run | None = None,
) -> Evaluation:
    """Queue one pass. Without an actor it is a run's own, at its cadence."""
    if actor is not None:
        check_can_write(actor, project_id=suite.project_id)
    if suite.status == EvalSuite.Status.FAILED:
        raise UserError(f"The suite {suite.name} could not be built: {suite.error}", field="suite")
    if checkpoint is not None:
        base_model = checkpoint.base_model
        if checkpoint.deleted_at is not None:
            raise UserError(f"The checkpoint {checkpoint.name} was deleted.", field="checkpoint")
        check_loadable(checkpoint)
        if checkpoint.project_id != suite.project_id:  # whose members would see its scores
            raise NotFound(f"There is no checkpoint {checkpoint.pk} in the project of {suite}.")
    if base_model is None:
        raise UserError("Choose a checkpoint or a base model to evaluate.", field="checkpoint")
    evaluation = Evaluation.objects.create(
        project=suite.project,
        suite=suite,
        base_model=base_model,
        checkpoint=checkpoint,
        run=run or (checkpoint.run if checkpoint else None),
        created_by=actor.user if actor else None,
    )
    send_task(EVALUATE, evaluation.pk)
    _announce(evaluation)
    return evaluation


def begin_evaluation(evaluation: Evaluation) -> bool:
    """Submit a call for every item, once. False: it has begun, was cancelled, or must wait."""
    suite = evaluation.suite
    if suite.status != EvalSuite.Status.READY:
        return False
    queued = Evaluation.objects.filter(pk=evaluation.pk, status=Status.QUEUED)
    with transaction.atomic():
        served = {"sampling": suite.sampling, "suite": suite.digest}
        if queued.update(status=Status.RUNNING, started_at=now(), served=served) != 1:
            return False
        submit_calls([_make_call(evaluation, index) for index in range(suite.num_items)])
    _announce(evaluation)
    return True


def record_result(
    evaluation: Evaluation, index: int, *, served: Mapping[str, Any], **columns: Any
) -> None:
    """Keep one graded answer, or why there is none. `settle` ends the evaluation, once committed:
    two samplers that record the last two answers do not see each other's before.
    """
    EvalResult.objects.update_or_create(evaluation=evaluation, index=index, defaults=columns)
    if served and "server" not in evaluation.served:
        evaluation.served |= served
        _running(evaluation).update(served=evaluation.served)


def settle(evaluation: Evaluation) -> None:
    """Count what is done, and end with the last one."""
    num_done, num_items = evaluation.results.count(), evaluation.suite.num_items
    _running(evaluation).update(num_done=num_done)
    if num_done >= num_items:
        _finish(evaluation)
    elif num_done % max(1, num_items // HINTS_AN_EVALUATION) == 0:
        _announce(evaluation)


def announce_waiting() -> None:
    """For messages that were lost and workers that died: what has begun is not disturbed."""
    moment = now() - ANNOUNCED
    building = EvalSuite.objects.filter(status=EvalSuite.Status.BUILDING, created_at__lt=moment)
    for pk in building.values_list("pk", flat=True):
        send_task(BUILD_SUITE, pk)
    ready = Evaluation.objects.filter(status=Status.QUEUED, suite__status=EvalSuite.Status.READY)
    for pk in ready.filter(created_at__lt=moment).values_list("pk", flat=True):
        send_task(EVALUATE, pk)


def settle_abandoned() -> None:
    """Ends what nothing works on any more: a sampler died between an answer and its count."""
    for evaluation in Evaluation.objects.filter(status=Status.RUNNING).select_related("suite"):
        if not any(_find_calls(evaluation, status).exists() for status in calls.LIVE):
            settle(evaluation)
            _finish(evaluation)


def _find_calls(evaluation: Evaluation, status: str) -> QuerySet[SamplingCall]:
    return SamplingCall.objects.filter(status=status, about__evaluation=evaluation.pk)


def cancel_evaluation(*, actor: Actor, evaluation: Evaluation) -> None:
    live = Evaluation.objects.visible_to(actor).filter(pk=evaluation.pk, status__in=LIVE)
    if _end(live, evaluation, status=Status.CANCELLED):
        cancel_calls(about={"evaluation": evaluation.pk})


def mark_failed(evaluation: Evaluation, error: str) -> None:
    live = Evaluation.objects.filter(pk=evaluation.pk, status__in=LIVE)
    if _end(live, evaluation, status=Status.FAILED, error=error):
        cancel_calls(about={"evaluation": evaluation.pk})


def _make_call(evaluation: Evaluation, index: int) -> SamplingCall:
    item = evaluation.suite.items[index]
    payload = {
        "messages": item["messages"],
        "tools": item.get("tools"),
        "num_samples": 1,
        "params": evaluation.suite.sampling,
        "prompt_logprobs": False,
    }
    return SamplingCall(
        project=evaluation.project,
        purpose=SamplingCall.Purpose.EVALUATION,
        base_model=evaluation.base_model,
        checkpoint=evaluation.checkpoint,
        payload=payload,
        digest=digest_payload(payload),
        about={"evaluation": evaluation.pk, "index": index},
    )


def _running(evaluation: Evaluation) -> QuerySet[Evaluation]:
    return Evaluation.objects.filter(pk=evaluation.pk, status=Status.RUNNING)


def _finish(evaluation: Evaluation) -> None:
    """The mean of every grader over what was answered; where nothing was, it has failed."""
    live = _running(evaluation)
    answered = list(evaluation.results.filter(error=""))
    if not answered:
        first = evaluation.results.first()
        error = first.error if first else "No prompt of it was answered."
        _end(live, evaluation, status=Status.FAILED, error=error)
        return
    names = [grader["name"] for grader in evaluation.suite.graders]
    scores = {
        name: sum(result.scores.get(name, 0.0) for result in answered) / len(answered)
        for name in names
    }
    _end(live, evaluation, status=Status.DONE, scores=scores)


def _end(live: QuerySet[Evaluation], evaluation: Evaluation, **columns: Any) -> bool:
    ended = live.update(ended_at=now(), **columns) == 1
    if ended:
        _announce(evaluation)
        _call_waiting_moves(evaluation)
    return ended


def _call_waiting_moves(evaluation: Evaluation) -> None:
    """Of aliases: the evaluation may be what decides."""
    waiting = AliasMove.objects.filter(outcome=AliasMove.Outcome.WAITING)
    for_it = Q(evaluation=evaluation) | Q(previous_evaluation=evaluation)
    if waiting.filter(for_it).exists():
        send_task(SETTLE_MOVES, evaluation.pk)


def _announce(evaluation: Evaluation) -> None:
    publish(project_group(evaluation.project_id), "evals")
    if evaluation.run_id:
        publish(run_group(evaluation.run_id), "evals")


def _check_selection(selection: Mapping[str, Any]) -> None:
    share, limit = selection["held_out_share"], selection["limit"]
    if not 0 < share <= 1:
        raise UserError(
            f"held_out_share is {share!r}; it lies above 0 and up to 1 (every row).",
            field="held_out_share",
        )
    if limit is not None and not 1 <= limit <= MAX_ITEMS:
        raise UserError(f"limit is {limit!r}; it lies between 1 and {MAX_ITEMS}.", field="limit")


def _check_graders(graders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not graders:
        raise UserError("A suite needs a grader; the first one is the score.", field="graders")
    names = [grader.get("name") for grader in graders]
    for name in names:
        if name not in GRADERS:
            raise UserError(
                f"There is no grader {name!r}; there are {', '.join(GRADERS)}.", field="graders"
            )
    if len(set(names)) < len(names):
        raise UserError("Name each grader once.", field="graders")
    return [dict(grader) for grader in graders]
