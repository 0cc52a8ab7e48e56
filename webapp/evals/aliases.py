"""Every write to aliases: made, asked to move, settled by a paired test, rolled back."""

import re
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.accounts.webhooks import tell
from webapp.checkpoints.chains import lock
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish
from webapp.deployments.models import Deployment
from webapp.evals.alias_rules import BETTER, LEVEL, Decision, decide
from webapp.evals.models import Alias, AliasMove, EvalSuite, Evaluation
from webapp.evals.naming import name_checkpoint, name_subject
from webapp.evals.rule_changes import begin_rule, make_rule
from webapp.evals.services import LIVE, request_evaluation
from webapp.fleet.models import BaseModelName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
WAITING = AliasMove.Outcome.WAITING
MOVED, REFUSED = AliasMove.Outcome.MOVED, AliasMove.Outcome.REFUSED
ROLLED_BACK = AliasMove.Outcome.ROLLED_BACK
FAILED = (Evaluation.Status.FAILED, Evaluation.Status.CANCELLED)


def create_alias(
    *,
    actor: Actor,
    name: str,
    suite: EvalSuite | None = None,
    grader: str = "",
    test: str = BETTER,
    margin: float = 0.0,
    level: float = LEVEL,
) -> Alias:
    """It names nothing yet. Without a suite it moves freely."""
    check_can_write(actor)
    check_name(actor, name)
    rule = make_rule(actor.project, suite, grader=grader, test=test, margin=margin, level=level)
    try:
        with transaction.atomic():
            alias = Alias.objects.create(project=actor.project, name=name, suite=suite, rule=rule)
            begin_rule(alias, actor.user)
            _record(actor, alias, "alias_created")
    except IntegrityError:
        raise UserError(f"There is an alias named {name} already.", field="name") from None
    _announce(alias)
    return alias


def check_name(actor: Actor, name: str) -> None:
    """A request's `model` is read as a deployment's name first: one name for two is a trap."""
    if not NAME.fullmatch(name):
        raise UserError(
            "An alias is named by letters, digits, dots, dashes and underscores, at most 80, and"
            " begins with a letter or digit.",
            field="name",
        )
    if Deployment.objects.filter(project=actor.project, name=name).exists():
        raise UserError(f"A deployment is named {name}: choose another name.", field="name")
    if BaseModelName.objects.filter(name=name).exists():
        raise UserError(f"A base model is named {name}: choose another name.", field="name")


def delete_alias(*, actor: Actor, alias: Alias) -> None:
    """The name and its history; the checkpoint stays."""
    check_can_write(actor, project_id=alias.project_id)
    with transaction.atomic():
        _record(actor, alias, "alias_deleted")
        alias.delete()
    _announce(alias)


def request_move(*, actor: Actor, alias: Alias, checkpoint: Checkpoint) -> AliasMove:
    """Moved or refused at once where both evaluations are there; else they are asked for, and the
    move waits for them.
    """
    check_can_write(actor, project_id=alias.project_id)
    _check_candidate(alias, checkpoint)
    move = _begin_move(actor, alias, checkpoint)
    settle_move(move)
    move.refresh_from_db()
    return move


def _check_candidate(alias: Alias, checkpoint: Checkpoint) -> None:
    if checkpoint.project_id != alias.project_id:
        raise NotFound(f"There is no checkpoint {checkpoint.pk} in the project of {alias.name}.")
    if checkpoint.deleted_at is not None:
        raise UserError(f"{name_checkpoint(checkpoint)} was deleted.", field="checkpoint")
    check_loadable(checkpoint)
    if alias.checkpoint_id == checkpoint.pk:
        raise UserError(
            f"{alias.name} names {name_checkpoint(checkpoint)} already.", field="checkpoint"
        )


@transaction.atomic
def _begin_move(actor: Actor, alias: Alias, checkpoint: Checkpoint) -> AliasMove:
    previous = alias.checkpoint
    try:
        with transaction.atomic():
            move = AliasMove.objects.create(
                alias=alias, checkpoint=checkpoint, previous=previous, user=actor.user
            )
    except IntegrityError:
        raise UserError(_describe_waiting(alias), field="checkpoint") from None
    if alias.suite is not None and previous is not None:
        move.evaluation = _find_evaluation(actor, alias.suite, checkpoint)
        move.previous_evaluation = _find_evaluation(actor, alias.suite, previous)
        move.save(update_fields=["evaluation", "previous_evaluation"])
    return move


def _describe_waiting(alias: Alias) -> str:
    waiting = alias.moves.filter(outcome=WAITING).select_related("checkpoint__run").first()
    to = f" to {name_checkpoint(waiting.checkpoint)}" if waiting and waiting.checkpoint else ""
    return (
        f"{alias.name} was asked to move{to} already, and waits for evaluations: let that be"
        " decided, or call it off."
    )


def _find_evaluation(actor: Actor, suite: EvalSuite, checkpoint: Checkpoint) -> Evaluation:
    """The newest that is done; one on its way; else a new one."""
    known = Evaluation.objects.filter(suite=suite, checkpoint=checkpoint)
    done = known.filter(status=Evaluation.Status.DONE).first()
    live = done or known.filter(status__in=LIVE).first()
    return live or request_evaluation(actor=actor, suite=suite, checkpoint=checkpoint)


def settle_move(move: AliasMove) -> bool:
    """Moved or refused, once. False: it waits still, or somebody else has settled it."""
    move = AliasMove.objects.select_related(
        "alias__suite", "alias__project", "checkpoint__run", "previous__run"
    ).get(pk=move.pk)
    if move.outcome != WAITING:
        return False
    decision = _decide(move)
    if decision is None:
        return False
    return _end_move(move, decision)


def settle_moves(evaluation_id: str = "") -> int:
    """Those that wait for this evaluation, or all that wait: how many were settled."""
    waiting = AliasMove.objects.filter(outcome=WAITING)
    if evaluation_id:
        waiting = waiting.filter(Q(evaluation=evaluation_id) | Q(previous_evaluation=evaluation_id))
    return sum(settle_move(move) for move in waiting)


def call_off(*, actor: Actor, alias: Alias) -> None:
    """The evaluations that it asked for go on: they say something all the same."""
    check_can_write(actor, project_id=alias.project_id)
    waiting = AliasMove.objects.filter(alias=alias, outcome=WAITING)
    if waiting.update(outcome=REFUSED, text="It was called off.", ended_at=now()) != 1:
        raise UserError(f"{alias.name} waits for no move: there is nothing to call off.")
    _announce(alias)


def roll_back(*, actor: Actor, alias: Alias) -> AliasMove:
    """To what it named before the move that brought it where it is. No test stands before it."""
    check_can_write(actor, project_id=alias.project_id)
    last = find_way_back(alias)
    if last is None or last.previous is None:
        raise UserError(f"{alias.name} named nothing before: there is nothing to roll back to.")
    text = f"Rolled back to {name_checkpoint(last.previous)}."
    with transaction.atomic():
        if not _point(alias, alias.checkpoint_id, last.previous):
            raise UserError(
                f"{name_checkpoint(last.previous)} was deleted, or {alias.name} was moved at this"
                " moment: look at its page again."
            )
        move = AliasMove.objects.create(
            alias=alias,
            checkpoint=last.previous,
            previous=alias.checkpoint,
            outcome=ROLLED_BACK,
            text=text,
            user=actor.user,
            ended_at=now(),
        )
        _record(actor, alias, "alias_rolled_back", checkpoint=last.previous.pk)
    alias.refresh_from_db()
    _tell(move, "alias.moved", text)
    return move


def find_way_back(alias: Alias) -> AliasMove | None:
    """The move that brought it where it is."""
    moves = alias.moves.filter(outcome=MOVED, checkpoint=alias.checkpoint_id or "")
    return moves.select_related("previous__run").first()


def _decide(move: AliasMove) -> Decision | None:
    """None: an evaluation is still on its way."""
    problem = _find_problem(move)
    if problem:
        return _refuse(problem)
    if move.previous is None or move.alias.suite is None:
        text = "It moves freely." if move.previous else "It named nothing before."
        return Decision(has_passed=True, text=text, statistics={})
    previous = _read_evaluation(move.previous_evaluation_id)
    candidate = _read_evaluation(move.evaluation_id)
    if previous is None or candidate is None:
        return _refuse("One of the evaluations that it waited for is gone: ask again.")
    if {previous.suite_id, candidate.suite_id} != {move.alias.suite_id}:
        return _refuse(f"{move.alias.name} asks for another suite by now: ask again.")
    return _test(previous, candidate, move.alias.rule)


def _test(previous: Evaluation, candidate: Evaluation, rule: Mapping[str, Any]) -> Decision | None:
    failed = [each for each in (previous, candidate) if each.status in FAILED]
    if failed:
        return _refuse(_describe_end(failed[0]))
    if previous.status in LIVE or candidate.status in LIVE:
        return None
    try:
        return decide(previous, candidate, rule)
    except UserError as error:
        return _refuse(error.message)


def _refuse(text: str) -> Decision:
    return Decision(has_passed=False, text=text, statistics={})


def _find_problem(move: AliasMove) -> str:
    if move.checkpoint is None or move.checkpoint.deleted_at is not None:
        return "The checkpoint was deleted meanwhile."
    if move.alias.checkpoint_id != move.previous_id:
        return (
            f"{move.alias.name} was moved meanwhile, so the test compared with what it names no"
            " longer: ask again."
        )
    return ""


def _read_evaluation(evaluation_id: str | None) -> Evaluation | None:
    rows = Evaluation.objects.select_related("suite", "checkpoint__run", "base_model")
    return rows.filter(pk=evaluation_id).first()


def _describe_end(evaluation: Evaluation) -> str:
    opening = f"The evaluation of {name_subject(evaluation)}"
    if evaluation.status == Evaluation.Status.CANCELLED:
        return f"{opening} was cancelled."
    return f"{opening} failed: {evaluation.error}"


@transaction.atomic
def _end_move(move: AliasMove, decision: Decision) -> bool:
    """Whoever settles first does it. An alias that names something else by now is not moved."""
    mine = AliasMove.objects.filter(pk=move.pk, outcome=WAITING)
    outcome, text = (MOVED, decision.text) if decision.has_passed else (REFUSED, decision.text)
    ended = {"statistics": dict(decision.statistics), "ended_at": now()}
    if mine.update(outcome=outcome, text=text, **ended) != 1:
        return False
    if outcome == MOVED and not (
        move.checkpoint and _point(move.alias, move.previous_id, move.checkpoint)
    ):
        outcome, text = REFUSED, "The alias was moved, or the checkpoint deleted, meanwhile."
        AliasMove.objects.filter(pk=move.pk).update(outcome=outcome, text=text)
    details = {"checkpoint": move.checkpoint_id or "", "outcome": str(outcome)}
    record_audit(
        project=move.alias.project_id,
        user=move.user,
        event="alias_moved" if outcome == MOVED else "alias_refused",
        alias=move.alias.name,
        **details,
    )
    _tell(move, "alias.moved" if outcome == MOVED else "alias.refused", text)
    return True


def _point(alias: Alias, previous_id: str | None, checkpoint: Checkpoint) -> bool:
    """In a transaction. False: it names something else by now, or the weights are gone."""
    if not lock(Checkpoint.objects.alive().filter(pk=checkpoint.pk)):
        return False
    still = Alias.objects.filter(pk=alias.pk, checkpoint=previous_id)
    return still.update(checkpoint=checkpoint, moved_at=now()) == 1


def _tell(move: AliasMove, event: str, text: str) -> None:
    alias, checkpoint = move.alias, move.checkpoint
    names = name_checkpoint(checkpoint) if checkpoint else "a deleted checkpoint"
    verb = "names" if event == "alias.moved" else "was not moved to"
    body = {
        "text": f"{alias.name} {verb} {names}. {text}",
        "alias": alias.name,
        "move": move.pk,
        "checkpoint": move.checkpoint_id,
        "previous": move.previous_id,
    }
    tell(alias.project_id, event, f"alias-move-{move.pk}", body)
    _announce(alias)


def _record(actor: Actor, alias: Alias, event: str, **details: str) -> None:
    record_audit(
        project=alias.project_id, user=actor.user, event=event, alias=alias.name, **details
    )


def _announce(alias: Alias) -> None:
    publish(project_group(alias.project_id), "evals")
