"""Aliases: they move where their paired test passes, and say why they do not."""

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_viewer
from tests.webapp.deployments.conftest import make_deployment
from tests.webapp.evals.cast import make_evaluation, make_suite, make_trained
from webapp.accounts.models import Actor, AuditEntry, Delivery, Webhook
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint, without_users
from webapp.core.errors import NotFound, UserError
from webapp.deployments.services import create_deployment
from webapp.evals import services
from webapp.evals.aliases import (
    call_off,
    create_alias,
    delete_alias,
    request_move,
    roll_back,
    settle_move,
    settle_moves,
)
from webapp.evals.models import Alias, AliasMove, EvalSuite, Evaluation
from webapp.openai.listing import list_models
from webapp.openai.targets import find_target

Outcome = AliasMove.Outcome
Status = Evaluation.Status
SIZE = 20


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    return make_suite(alice, SIZE, name="sums")


@pytest.fixture
def old(alice: Actor) -> Checkpoint:
    return make_trained(alice, "old", 10)


@pytest.fixture
def new(alice: Actor) -> Checkpoint:
    return make_trained(alice, "new", 40)


@pytest.fixture
def prod(alice: Actor, suite: EvalSuite, old: Checkpoint) -> Alias:
    """It names `old`, and asks for better."""
    alias = create_alias(actor=alice, name="prod", suite=suite)
    request_move(actor=alice, alias=alias, checkpoint=old)
    alias.refresh_from_db()
    return alias


def evaluate(
    suite: EvalSuite, checkpoint: Checkpoint, num_right: int, **columns: Any
) -> Evaluation:
    scores = [1] * num_right + [0] * (SIZE - num_right)
    return make_evaluation(suite, scores, checkpoint=checkpoint, **columns)


def finish(evaluation: Evaluation | None, num_right: int) -> None:
    """As the sampler does with the last answer."""
    assert evaluation is not None
    Evaluation.objects.filter(pk=evaluation.pk).update(status=Status.RUNNING)
    for index in range(SIZE):
        services.record_result(
            evaluation, index, served={}, completion="",
            scores={"exact_match": float(index < num_right), "contains": 1.0},
        )  # fmt: skip
    services.settle(evaluation)


def test_the_first_move_is_free(alice: Actor, suite: EvalSuite, old: Checkpoint) -> None:
    alias = create_alias(actor=alice, name="prod", suite=suite)
    move = request_move(actor=alice, alias=alias, checkpoint=old)
    alias.refresh_from_db()
    assert (alias.checkpoint, move.outcome) == (old, Outcome.MOVED)
    assert move.text == "It named nothing before."
    assert alias.moved_at is not None
    assert not Evaluation.objects.exists()


def test_an_alias_without_a_suite_moves_freely(
    alice: Actor, old: Checkpoint, new: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="latest")
    for checkpoint in (old, new, old):
        alias.refresh_from_db()
        assert request_move(actor=alice, alias=alias, checkpoint=checkpoint).outcome == "moved"
    alias.refresh_from_db()
    assert alias.checkpoint == old


def test_it_moves_to_what_is_better_and_keeps_the_numbers(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    evaluate(suite, old, 8)
    evaluate(suite, new, 18)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    prod.refresh_from_db()
    assert (move.outcome, prod.checkpoint) == (Outcome.MOVED, new)
    # McNemar of 10 and 0: 2 / 2^10.
    assert move.statistics["p_value"] == pytest.approx(2 / 1024)
    assert (move.statistics["wins"], move.statistics["losses"]) == (10, 0)
    assert move.statistics["difference"] == pytest.approx(50)
    assert move.text.startswith(
        "new, step 40 against old, step 10: better on 10, worse on 0 of 20 (p = 0.002, +50.0 points"
    )
    assert move.text.endswith("That is better at 95 %.")


def test_it_is_refused_what_may_be_chance(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    evaluate(suite, old, 8)
    evaluate(suite, new, 12)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    prod.refresh_from_db()
    assert (move.outcome, prod.checkpoint) == (Outcome.REFUSED, old)
    assert "p = 0.12" in move.text
    assert move.text.endswith("That is not better at 95 %: the test asks for it.")
    # The same numbers at another level.
    prod.rule["level"] = 0.85
    prod.save()
    assert request_move(actor=alice, alias=prod, checkpoint=new).outcome == Outcome.MOVED


def test_what_is_clearly_worse_is_not_better(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    evaluate(suite, old, 18)
    evaluate(suite, new, 2)
    assert request_move(actor=alice, alias=prod, checkpoint=new).outcome == Outcome.REFUSED


@pytest.mark.parametrize(("margin", "outcome"), [(5.0, "refused"), (20.0, "moved")])
def test_not_worse_asks_where_the_interval_begins(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, margin: float, outcome: str
) -> None:
    """All of 20 the same: Newcombe's interval is +-3.841459 / 23.841459 = +-16.1 points."""
    alias = create_alias(actor=alice, name="safe", suite=suite, test="not_worse", margin=margin)
    request_move(actor=alice, alias=alias, checkpoint=old)
    alias.refresh_from_db()
    for checkpoint in (old, new):
        evaluate(suite, checkpoint, SIZE)
    move = request_move(actor=alice, alias=alias, checkpoint=new)
    assert move.outcome == outcome
    assert "The 95 % interval begins at -16.1 points" in move.text


def test_missing_evaluations_are_asked_for_first_and_decide_when_they_end(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    assert move.outcome == Outcome.WAITING
    asked = Evaluation.objects.order_by("created_at")
    assert {each.checkpoint for each in asked} == {old, new}
    assert {each.status for each in asked} == {Status.QUEUED}
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(services, "send_task", lambda name, *args: sent.append((name, *args)))
    finish(move.previous_evaluation, 4)
    assert not settle_move(move)
    finish(move.evaluation, 20)
    assert sent == [
        ("evals.settle_moves", move.previous_evaluation_id),
        ("evals.settle_moves", move.evaluation_id),
    ]
    assert settle_moves(move.evaluation_id or "") == 1
    prod.refresh_from_db()
    assert prod.checkpoint == new
    assert settle_moves() == 0


def test_an_evaluation_on_its_way_is_waited_for_and_not_asked_again(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    evaluate(suite, old, 4)
    live = evaluate(suite, new, 0, status=Status.RUNNING)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    assert move.evaluation == live
    assert Evaluation.objects.count() == 2


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (Status.FAILED, "No server.", "The evaluation of new, step 40 failed: No server."),
        (Status.CANCELLED, "", "The evaluation of new, step 40 was cancelled."),
    ],
)
def test_an_evaluation_that_does_not_end_well_refuses_the_move(
    alice: Actor, suite: EvalSuite, new: Checkpoint, prod: Alias, status: str, error: str, told: str
) -> None:  # fmt: skip
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    Evaluation.objects.filter(pk=move.evaluation_id).update(status=status, error=error)
    assert settle_moves() == 1
    move.refresh_from_db()
    assert (move.outcome, move.text) == (Outcome.REFUSED, told)
    again = request_move(actor=alice, alias=prod, checkpoint=new)
    assert again.outcome == Outcome.WAITING  # for another evaluation
    assert again.evaluation_id != move.evaluation_id


def test_too_few_answers_do_not_decide(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    evaluate(suite, old, 4)
    make_evaluation(suite, [1] * 17 + [None] * 3, checkpoint=new)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    assert move.outcome == Outcome.REFUSED
    assert move.text.endswith(
        "Too few items can be compared: 3 of 20 have no graded answer from one of the two."
    )


def test_answers_to_nothing_in_common_are_said(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    make_evaluation(suite, [None] * 10 + [1] * 10, checkpoint=old)
    make_evaluation(suite, [1] * 10 + [None] * 10, checkpoint=new)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    assert move.text == "The two evaluations have no answered sample in common."


def test_a_second_move_is_refused_while_one_waits(
    alice: Actor, suite: EvalSuite, new: Checkpoint, prod: Alias
) -> None:
    first = request_move(actor=alice, alias=prod, checkpoint=new)
    other = make_trained(alice, "other", 5)
    with pytest.raises(UserError, match="prod was asked to move to new, step 40 already"):
        request_move(actor=alice, alias=prod, checkpoint=other)
    assert not Evaluation.objects.filter(checkpoint=other).exists()
    with pytest.raises(IntegrityError), transaction.atomic():
        AliasMove.objects.create(alias=prod, checkpoint=other)
    call_off(actor=alice, alias=prod)
    first.refresh_from_db()
    assert (first.outcome, first.text) == (Outcome.REFUSED, "It was called off.")
    assert request_move(actor=alice, alias=prod, checkpoint=other).outcome == Outcome.WAITING
    with pytest.raises(UserError, match="waits for no move"):
        call_off(actor=alice, alias=create_alias(actor=alice, name="calm"))


def test_a_move_that_was_overtaken_is_refused(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    other = make_trained(alice, "other", 5)
    Alias.objects.filter(pk=prod.pk).update(checkpoint=other)
    finish(move.previous_evaluation, 0)
    finish(move.evaluation, 20)
    assert settle_moves() == 1
    move.refresh_from_db()
    prod.refresh_from_db()
    assert (move.outcome, prod.checkpoint) == (Outcome.REFUSED, other)
    assert move.text.startswith("prod was moved meanwhile")


def test_a_checkpoint_that_is_deleted_while_a_move_waits_refuses_it(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    finish(move.previous_evaluation, 0)
    finish(move.evaluation, 20)
    Checkpoint.objects.filter(pk=new.pk).update(deleted_at=now())
    assert settle_moves() == 1
    move.refresh_from_db()
    assert (move.outcome, move.text) == (
        Outcome.REFUSED, "The checkpoint was deleted meanwhile.",
    )  # fmt: skip


def test_what_cannot_be_named_is_refused_in_a_sentence(
    alice: Actor, old: Checkpoint, new: Checkpoint, prod: Alias
) -> None:
    with pytest.raises(UserError, match="prod names old, step 10 already"):
        request_move(actor=alice, alias=prod, checkpoint=old)
    Checkpoint.objects.filter(pk=new.pk).update(deleted_at=now())
    new.refresh_from_db()
    with pytest.raises(UserError, match="new, step 40 was deleted"):
        request_move(actor=alice, alias=prod, checkpoint=new)
    stranger = make_actor("charlie")
    with pytest.raises(NotFound, match="There is no checkpoint"):
        request_move(actor=alice, alias=prod, checkpoint=make_trained(stranger, "theirs", 1))
    with pytest.raises(NotFound):
        request_move(actor=stranger, alias=prod, checkpoint=new)
    with pytest.raises(UserError, match="viewer"):
        request_move(actor=make_viewer(alice), alias=prod, checkpoint=new)


def test_a_roll_back_needs_no_test_and_goes_back_step_by_step(
    alice: Actor, old: Checkpoint, new: Checkpoint
) -> None:
    third = make_trained(alice, "third", 3)
    alias = create_alias(actor=alice, name="latest")
    for checkpoint in (old, new, third):
        request_move(actor=alice, alias=alias, checkpoint=checkpoint)
        alias.refresh_from_db()
    for expected in (new, old):
        move = roll_back(actor=alice, alias=alias)
        assert (alias.checkpoint, move.outcome) == (expected, Outcome.ROLLED_BACK)
    assert move.text == "Rolled back to old, step 10."
    with pytest.raises(UserError, match="nothing to roll back to"):
        roll_back(actor=alice, alias=alias)


def test_a_roll_back_to_deleted_weights_is_refused(
    alice: Actor, old: Checkpoint, new: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="latest")
    for checkpoint in (old, new):
        request_move(actor=alice, alias=alias, checkpoint=checkpoint)
        alias.refresh_from_db()
    delete_checkpoint(actor=alice, checkpoint=old)
    with pytest.raises(UserError, match="old, step 10 was deleted"):
        roll_back(actor=alice, alias=alias)
    alias.refresh_from_db()
    assert alias.checkpoint == new


def test_what_an_alias_names_is_not_deleted_and_outlives_its_time(
    alice: Actor, old: Checkpoint, prod: Alias
) -> None:
    with pytest.raises(UserError, match="cannot be deleted: the alias prod names it"):
        delete_checkpoint(actor=alice, checkpoint=old)
    assert not without_users(Checkpoint.objects.filter(pk=old.pk)).exists()
    delete_alias(actor=alice, alias=prod)
    delete_checkpoint(actor=alice, checkpoint=old)


@pytest.mark.parametrize("name", ["", "a/b", "-x", "x" * 81, "prod stable", "tiny\0"])
def test_a_name_that_no_request_could_say_is_refused(alice: Actor, name: str) -> None:
    with pytest.raises(UserError, match="An alias is named by"):
        create_alias(actor=alice, name=name)


def test_a_name_that_means_something_else_already_is_refused(
    alice: Actor, suite: EvalSuite, old: Checkpoint, prod: Alias
) -> None:
    make_deployment(alice, old, name="calls")
    for name, told in (("calls", "A deployment"), ("model", "A base model"), ("prod", "an alias")):
        with pytest.raises(UserError, match=told):
            create_alias(actor=alice, name=name)
    with pytest.raises(UserError, match="An alias is named prod"):
        create_deployment(actor=alice, name="prod", checkpoint=old)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"test": "best"}, "test is 'best'"),
        ({"grader": "vibes"}, "no grader 'vibes'"),
        ({"level": 1.0}, "level is 1"),
        ({"level": float("nan")}, "level is nan"),
        ({"margin": -1.0}, "margin is -1"),
        ({"margin": float("inf")}, "margin is inf"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(
    alice: Actor, suite: EvalSuite, rule: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        create_alias(actor=alice, name="prod", suite=suite, **rule)


def test_a_request_names_a_model_by_its_alias(
    alice: Actor, old: Checkpoint, new: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="latest")
    with pytest.raises(NotFound, match="names no checkpoint yet"):
        find_target(alice, "latest")
    request_move(actor=alice, alias=alias, checkpoint=old)
    assert find_target(alice, "latest").checkpoint == old
    alias.refresh_from_db()
    request_move(actor=alice, alias=alias, checkpoint=new)
    assert find_target(alice, "latest").checkpoint == new
    listed = {each["id"]: each for each in list_models(alice)["data"]}
    assert (listed["latest"]["kind"], listed["latest"]["parent"]) == ("alias", "model")
    with pytest.raises(NotFound):
        find_target(make_actor("charlie"), "latest")


def test_moves_and_refusals_are_told_and_written_down(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    Webhook.objects.create(project=alice.project, url="http://127.0.0.1:9/", secret="x")
    alias = create_alias(actor=alice, name="prod", suite=suite)
    request_move(actor=alice, alias=alias, checkpoint=old)
    alias.refresh_from_db()
    evaluate(suite, old, 8)
    evaluate(suite, new, 8)
    request_move(actor=alice, alias=alias, checkpoint=new)
    told = list(Delivery.objects.order_by("pk"))
    assert [each.event for each in told] == ["alias.moved", "alias.refused"]
    assert told[0].body["text"] == "prod names old, step 10. It named nothing before."
    assert told[1].body["checkpoint"] == new.pk
    events = AuditEntry.objects.filter(event__startswith="alias_").values_list("event", flat=True)
    assert list(events) == ["alias_created", "alias_moved", "alias_refused"]
