"""Every write to suites, evaluations and their results."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.timezone import now

from training.recipes.graders import KINDS
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.chains import hold_weights
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable
from webapp.core.dispatch import BUILD_SUITE, EVALUATE, GRADE, RUN_PROGRAM, SETTLE_MOVES, send_task
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish, run_group
from webapp.datasets.models import DatasetVersion
from webapp.deployments import calls
from webapp.deployments.calls import cancel_calls, digest_payload, submit_calls
from webapp.deployments.models import SamplingCall
from webapp.evals.checks import (
    check_graders,
    check_sampling,
    check_selection,
    check_spec,
    check_version,
)
from webapp.evals.curves import draw_on_run
from webapp.evals.figures import compute_figures, explain_nothing
from webapp.evals.judges import collect_judges
from webapp.evals.known import (
    Slot,
    choose_params,
    find_known,
    list_slots,
    make_key,
)
from webapp.evals.models import AliasMove, EvalResult, EvalSuite, Evaluation
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

Status = Evaluation.Status

LIVE = (Status.QUEUED, Status.RUNNING)
ANNOUNCED = timedelta(seconds=10)  # then a message should have been heard
GRADERS = tuple(KINDS)
HINTS_AN_EVALUATION = 50  # a page that follows a long one is told this often


def create_suite(  # noqa: PLR0913 - the form's fields, by name
    *,
    actor: Actor,
    name: str,
    graders: Sequence[Mapping[str, Any]],
    dataset_version: DatasetVersion | None = None,
    spec: Mapping[str, Any] | None = None,
    held_out_share: float = 0.1,
    held_out_by: str = "row",
    seed: int = 0,
    limit: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> EvalSuite:
    """Freeze prompts: the rows that a run with these settings holds out, or what `spec` says.
    A task builds it.
    """
    name = name.strip()
    if not name:
        raise UserError("A suite needs a name.", field="name")
    check_version(dataset_version, spec)
    selection: dict[str, Any] = {"held_out_share": held_out_share, "seed": seed, "limit": limit}
    if held_out_by != "row":
        selection["held_out_by"] = held_out_by
    check_selection(selection)
    try:
        with transaction.atomic():
            suite = EvalSuite.objects.create(
                project=actor.project,
                name=name,
                dataset_version=dataset_version,
                spec=check_spec(spec) if spec else {},
                selection=selection if dataset_version else {},
                graders=check_graders(graders),
                sampling=check_sampling(sampling),
            )
    except IntegrityError:
        raise UserError(f"There is a suite named {name} already.", field="name") from None
    send_task(BUILD_SUITE, suite.pk)
    publish(project_group(suite.project_id), "evals")
    return suite


def mark_built(suite: EvalSuite, items: Sequence[Mapping[str, Any]]) -> bool:
    """Freeze the items and start what waits for them. False: it was built already."""
    spec = {key: value for key, value in suite.spec.items() if key not in ("rows", "items")}
    frozen = {**suite.sampling, **spec} if suite.kind != EvalSuite.Kind.OWN else suite.sampling
    building = EvalSuite.objects.filter(pk=suite.pk, status=EvalSuite.Status.BUILDING)
    built = building.update(
        status=EvalSuite.Status.READY,
        items=list(items),
        num_items=len(items),
        digest=digest_suite(items, suite.graders, frozen),
        spec=spec,
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
    is_fresh: bool = False,
) -> Evaluation:
    """Queue one pass. Without an actor it is a run's own, at its cadence. What is known of these
    weights is taken over, unless it `is_fresh`.
    """
    if actor is not None:
        check_can_write(actor, project_id=suite.project_id)
    if suite.status == EvalSuite.Status.FAILED:
        raise UserError(f"The suite {suite.name} could not be built: {suite.error}", field="suite")
    if checkpoint is not None:
        base_model = checkpoint.base_model
        check_loadable(checkpoint)
        if checkpoint.project_id != suite.project_id:  # whose members would see its scores
            raise NotFound(f"There is no checkpoint {checkpoint.pk} in the project of {suite}.")
    if base_model is None:
        raise UserError("Choose a checkpoint or a base model to evaluate.", field="checkpoint")
    with transaction.atomic():
        hold_weights(checkpoint)
        evaluation = Evaluation.objects.create(
            project=suite.project,
            suite=suite,
            base_model=base_model,
            checkpoint=checkpoint,
            run=run or (checkpoint.run if checkpoint else None),
            created_by=actor.user if actor else None,
            is_fresh=is_fresh,
        )
    send_task(EVALUATE, evaluation.pk)
    _announce(evaluation)
    return evaluation


def begin_evaluation(evaluation: Evaluation) -> bool:
    """Take over what is known and submit calls for the rest, once.

    False: it has begun, was cancelled, or must wait.
    """
    suite = evaluation.suite
    if suite.status != EvalSuite.Status.READY:
        return False
    queued = Evaluation.objects.filter(pk=evaluation.pk, status=Status.QUEUED)
    with transaction.atomic():
        served = {"sampling": suite.sampling, "suite": suite.digest}
        if queued.update(status=Status.RUNNING, started_at=now(), served=served) != 1:
            return False
        evaluation.served, evaluation.status = served, Status.RUNNING
        if suite.kind != EvalSuite.Kind.OWN:
            send_task(RUN_PROGRAM, evaluation.pk)
            _announce(evaluation)
            return True
        asked = {slot: _make_call(evaluation, *slot) for slot in list_slots(suite)}
        known = _take_over(evaluation, asked)
        submit_calls([call for slot, call in asked.items() if slot not in known])
    _announce(evaluation)
    if known:
        settle(evaluation)
    return True


def _take_over(evaluation: Evaluation, asked: Mapping[Slot, SamplingCall]) -> set[Slot]:
    if evaluation.is_fresh:
        return set()
    weights = evaluation.checkpoint or evaluation.base_model
    keys = {slot: make_key(weights.digest, call.payload, slot[1]) for slot, call in asked.items()}
    known = find_known(evaluation, keys)
    EvalResult.objects.bulk_create(known, batch_size=200)
    if known and (digest := known[0].digest):
        evaluation.served |= {"digest": digest}
    running = {"num_known": len(known), "served": evaluation.served}
    _running(evaluation).update(**running)
    return {(result.index, result.sample) for result in known}


def record_result(
    evaluation: Evaluation,
    index: int,
    *,
    served: Mapping[str, Any],
    sample: int = 0,
    **columns: Any,
) -> None:
    """Keep one answer, or why there is none. `settle` ends the evaluation, once committed:
    two samplers that record the last two answers do not see each other's before.
    """
    EvalResult.objects.update_or_create(
        evaluation=evaluation, index=index, sample=sample, defaults=columns
    )
    if served and "server" not in evaluation.served:
        evaluation.served |= served
        _running(evaluation).update(served=evaluation.served)


def note_served(evaluation: Evaluation, **facts: Any) -> None:
    """How it was answered and graded, beside what the server said of itself."""
    evaluation.served |= facts
    _running(evaluation).update(served=evaluation.served)


def record_results(evaluation: Evaluation, results: Sequence[EvalResult]) -> None:
    """What another program has found, all at once and in the place of what was there."""
    with transaction.atomic():
        evaluation.results.all().delete()
        EvalResult.objects.bulk_create(results, batch_size=200)


def note_progress(evaluation: Evaluation, num_done: int) -> None:
    """What another program has got answers to; its results come all at once, when it has ended."""
    behind = _running(evaluation).exclude(num_done=num_done)
    if behind.update(num_done=num_done):
        _announce(evaluation)


def record_grades(results: Sequence[EvalResult]) -> None:
    """What graders that take their time have found."""
    EvalResult.objects.bulk_update(results, ["scores", "notes", "judges", "error"], batch_size=100)


def list_ungraded(evaluation: Evaluation) -> QuerySet[EvalResult]:
    return evaluation.results.filter(scores={}, error="")


def settle(evaluation: Evaluation) -> None:
    """Count what is done, and end with the last one, or have the answers graded."""
    num_done, num_answers = evaluation.results.count(), evaluation.suite.num_answers
    _running(evaluation).update(num_done=num_done)
    if num_done >= num_answers:
        _grade_or_finish(evaluation)
    elif num_done % max(1, num_answers // HINTS_AN_EVALUATION) == 0:
        _announce(evaluation)


def _grade_or_finish(evaluation: Evaluation) -> None:
    if not list_ungraded(evaluation).exists():
        _finish(evaluation)
    elif _running(evaluation).exists():
        send_task(GRADE, evaluation.pk)
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
    for evaluation in _list_running().filter(started_at__lt=moment):
        _announce_work(evaluation)


def _announce_work(evaluation: Evaluation) -> None:
    """Of what has begun: whoever is at it holds its claim, and one that died is followed."""
    if evaluation.suite.kind != EvalSuite.Kind.OWN:
        send_task(RUN_PROGRAM, evaluation.pk)
    elif not _is_asked(evaluation) and list_ungraded(evaluation).exists():
        send_task(GRADE, evaluation.pk)


def settle_abandoned() -> None:
    """Ends what nothing works on any more: a sampler died between an answer and its count."""
    for evaluation in _list_running().filter(suite__kind=EvalSuite.Kind.OWN):
        if not _is_asked(evaluation):
            _running(evaluation).update(num_done=evaluation.results.count())
            if not list_ungraded(evaluation).exists():
                _finish(evaluation)


def _list_running() -> QuerySet[Evaluation]:
    running = Evaluation.objects.filter(status=Status.RUNNING).select_related("suite")
    return running.defer("suite__items")


def _is_asked(evaluation: Evaluation) -> bool:
    return any(_find_calls(evaluation, status).exists() for status in calls.LIVE)


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


def _make_call(evaluation: Evaluation, index: int, sample: int) -> SamplingCall:
    item = evaluation.suite.items[index]
    payload = {
        "messages": item["messages"],
        "tools": item.get("tools"),
        "num_samples": 1,
        "params": choose_params(evaluation.suite, sample),
        "prompt_logprobs": False,
    }
    return SamplingCall(
        project=evaluation.project,
        purpose=SamplingCall.Purpose.EVALUATION,
        base_model=evaluation.base_model,
        checkpoint=evaluation.checkpoint,
        payload=payload,
        digest=digest_payload(payload),
        about={"evaluation": evaluation.pk, "index": index, "sample": sample},
    )


def _running(evaluation: Evaluation) -> QuerySet[Evaluation]:
    return Evaluation.objects.filter(pk=evaluation.pk, status=Status.RUNNING)


def _finish(evaluation: Evaluation) -> None:
    """With its figures over what was graded; where nothing was, it has failed."""
    live = _running(evaluation)
    graded = list(evaluation.results.exclude(scores={}).defer("completion"))
    scores = compute_figures(evaluation.suite, graded)
    if not scores:
        _end(live, evaluation, status=Status.FAILED, error=explain_nothing(evaluation))
        return
    if judges := collect_judges(graded):
        evaluation.refresh_from_db(fields=["served"])
        note_served(evaluation, judges=judges)
    if _end(live, evaluation, status=Status.DONE, scores=scores):
        draw_on_run(evaluation, scores)


def _end(live: QuerySet[Evaluation], evaluation: Evaluation, **columns: Any) -> bool:
    # Of another program that was ended nothing stays, however far it was.
    num_done = evaluation.results.count()
    ended = live.update(ended_at=now(), num_done=num_done, **columns) == 1
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
