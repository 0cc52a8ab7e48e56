"""The rules of an alias in the order that they held in: each is written down when it begins."""

from typing import Any

from django.db import transaction

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Project, User
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish
from webapp.evals.alias_rules import BETTER, LEVEL, check_rule, describe_rule
from webapp.evals.models import Alias, AliasMove, AliasRule, EvalSuite


def make_rule(
    project: Project,
    suite: EvalSuite | None,
    *,
    grader: str,
    test: str,
    margin: float,
    level: float,
) -> dict[str, Any]:
    """As it is kept. Empty: without a suite an alias moves freely."""
    if suite is None:
        return {}
    if suite.project_id != project.pk:
        raise NotFound(f"There is no suite {suite.pk} in this project.")
    return check_rule(suite, grader=grader, test=test, margin=margin, level=level)


def begin_rule(alias: Alias, user: User | None) -> AliasRule:
    """From now on the alias's own holds. In the transaction that changes it."""
    return AliasRule.objects.create(alias=alias, suite=alias.suite, rule=alias.rule, user=user)


def change_rule(
    *,
    actor: Actor,
    alias: Alias,
    suite: EvalSuite | None = None,
    grader: str = "",
    test: str = BETTER,
    margin: float = 0.0,
    level: float = LEVEL,
) -> Alias:
    """What it names stays. A move that waits was asked under the rule before: it goes first."""
    check_can_write(actor, project_id=alias.project_id)
    rule = make_rule(alias.project, suite, grader=grader, test=test, margin=margin, level=level)
    if (suite and suite.pk, rule) == (alias.suite_id, alias.rule):
        return alias
    with transaction.atomic():
        before = describe_rule(alias.suite, alias.rule)
        alias.suite, alias.rule = suite, rule
        alias.save(update_fields=["suite", "rule"])
        _check_none_waits(alias)
        begin_rule(alias, actor.user)
        record_audit(
            project=alias.project_id,
            user=actor.user,
            event="alias_rule_changed",
            alias=alias.name,
            before=before,
            rule=describe_rule(suite, rule),
        )
    publish(project_group(alias.project_id), "evals")
    return alias


def _check_none_waits(alias: Alias) -> None:
    if alias.moves.filter(outcome=AliasMove.Outcome.WAITING).exists():
        raise UserError(
            f"{alias.name} was asked to move under the rule that it has, and waits for evaluations:"
            " let that be decided, or call it off."
        )
