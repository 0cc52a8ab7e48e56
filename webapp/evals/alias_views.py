"""Pages of aliases: what each names, what it asks for, and every move that was asked of it."""

from dataclasses import dataclass, replace
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.models import Checkpoint
from webapp.core.curl import JSON, KEY
from webapp.core.errors import NotFound, UserError
from webapp.core.forms import show_errors
from webapp.evals.alias_forms import AliasForm, MoveForm, RuleForm
from webapp.evals.alias_rules import describe_rule
from webapp.evals.aliases import (
    call_off,
    create_alias,
    delete_alias,
    find_way_back,
    request_move,
    roll_back,
)
from webapp.evals.models import (
    Alias,
    AliasMove,
    AliasQuerySet,
    AliasRule,
    EvalSuite,
    Evaluation,
)
from webapp.evals.naming import name_checkpoint
from webapp.evals.rule_changes import change_rule

MOVES_A_PAGE = 25
RULES_SHOWN = 50
Outcome = AliasMove.Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasLine:
    """An alias in a table."""

    alias: Alias
    names: str
    rule: str
    last: AliasMove | None


def read_aliases(actor: Actor) -> AliasQuerySet:
    rows = Alias.objects.visible_to(actor).defer("suite__items", "checkpoint__probe")
    return rows.select_related("suite", "checkpoint__run", "project")


def make_line(alias: Alias) -> AliasLine:
    return AliasLine(
        alias=alias,
        names=name_checkpoint(alias.checkpoint) if alias.checkpoint else "",
        rule=describe_rule(alias.suite, alias.rule),
        last=next(iter(alias.moves.all()), None),
    )


@login_required
@require_GET
def list_aliases(request: ActorRequest) -> HttpResponse:
    rows = read_aliases(request.actor).filter(project=request.actor.project)
    context = {
        "lines": [make_line(each) for each in rows.prefetch_related("moves")],
        "rest": write_create(request),
    }
    return render(request, "evals/aliases.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def create(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    initial = {"name": request.GET.get("name", ""), "suite": request.GET.get("suite", "")}
    form = AliasForm(request.POST or None, actor=request.actor, initial=initial)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            return redirect("alias", _create(request.actor, form.cleaned_data).pk)
    status = 400 if form.errors else 200
    return render(request, "evals/alias_new.html", {"form": form}, status=status)


def _create(actor: Actor, chosen: dict[str, Any]) -> Alias:
    suite = EvalSuite.objects.in_project(actor).filter(pk=chosen.pop("suite")).first()
    return create_alias(actor=actor, suite=suite, **chosen)


@login_required
@require_http_methods(["GET", "POST"])
def edit_rule(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    check_can_write(request.actor, project_id=alias.project_id)
    initial = {**alias.rule, "suite": alias.suite_id or ""}
    there = replace(request.actor, project=alias.project)  # whose suites may be asked for
    form = RuleForm(request.POST or None, actor=there, initial=initial)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            _change_rule(request.actor, alias, form.cleaned_data)
            messages.success(request, f"From now on: {describe_rule(alias.suite, alias.rule)}")
            return redirect("alias", alias.pk)
    context = {"form": form, "alias": alias}
    status = 400 if form.errors else 200
    return render(request, "evals/alias_rule.html", context, status=status)


def _change_rule(actor: Actor, alias: Alias, chosen: dict[str, Any]) -> None:
    suite = EvalSuite.objects.visible_to(actor).filter(pk=chosen.pop("suite")).first()
    change_rule(actor=actor, alias=alias, suite=suite, **chosen)


def find_alias(actor: Actor, alias_id: str) -> Alias:
    alias: Alias | None = read_aliases(actor).filter(pk=alias_id).first()
    if alias is None:
        raise NotFound(f"There is no alias {alias_id}.")
    return alias


@login_required
@require_GET
def show_alias(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    form = MoveForm(actor=request.actor)
    form.initial["checkpoint"] = request.GET.get("checkpoint") or _offer_first(form, alias)
    return _render(request, alias, form)


def _offer_first(form: MoveForm, alias: Alias) -> str:
    """The newest that it does not name already."""
    offered = [pk for pk, _ in form.offered if pk != alias.checkpoint_id]
    return next(iter(offered), "")


def _render(request: ActorRequest, alias: Alias, form: MoveForm) -> HttpResponse:
    moves = alias.moves.select_related("checkpoint__run", "previous__run", "user")
    page = Paginator(moves.defer("checkpoint__probe", "previous__probe"), MOVES_A_PAGE).get_page(
        request.GET.get("page")
    )
    waiting = moves.filter(outcome=Outcome.WAITING).first()
    back = find_way_back(alias)
    context = {
        "alias": alias,
        "rule": describe_rule(alias.suite, alias.rule),
        "form": form,
        "page": page,
        "rules": list_rules(alias),
        "rows": [(move, _name(move.checkpoint), _name(move.previous)) for move in page],
        "waiting": waiting,
        "awaited": list_awaited(waiting) if waiting else [],
        "way_back": back.previous if back else None,
        "way_back_name": _name(back.previous) if back else "",
        "names": _name(alias.checkpoint),
        "examples": write_examples(request, alias),
    }
    status = 400 if form.errors else 200
    return render(request, "evals/alias.html", context, status=status)


def list_rules(alias: Alias) -> list[tuple[AliasRule, str]]:
    """The newest first, each in words; the one that holds is among them."""
    rows = alias.rules.select_related("suite", "user").defer("suite__items")[:RULES_SHOWN]
    return [(each, describe_rule(each.suite, each.rule)) for each in rows]


def _name(checkpoint: Checkpoint | None) -> str:
    return name_checkpoint(checkpoint) if checkpoint else ""


def list_awaited(move: AliasMove) -> list[Evaluation]:
    """What decides it."""
    pks = [move.previous_evaluation_id, move.evaluation_id]
    rows = Evaluation.objects.filter(pk__in=[pk for pk in pks if pk]).defer("suite__items")
    return list(rows.select_related("suite", "checkpoint__run").order_by("created_at"))


@login_required
@require_POST
def move(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    check_can_write(request.actor, project_id=alias.project_id)
    form = MoveForm(request.POST, actor=request.actor)
    if form.is_valid():
        with show_errors(form):
            asked = request_move(
                actor=request.actor,
                alias=alias,
                checkpoint=find_checkpoint(request.actor, form.cleaned_data["checkpoint"]),
            )
            _tell_outcome(request, alias, asked)
            return redirect("alias", alias.pk)
    return _render(request, alias, form)


def find_checkpoint(actor: Actor, checkpoint_id: str) -> Checkpoint:
    rows = Checkpoint.objects.visible_to(actor).select_related("run", "base_model")
    checkpoint = rows.filter(pk=checkpoint_id).first()
    if checkpoint is None:
        raise NotFound(f"There is no checkpoint {checkpoint_id}.")
    return checkpoint


def _tell_outcome(request: ActorRequest, alias: Alias, asked: AliasMove) -> None:
    if asked.outcome == Outcome.MOVED:
        messages.success(request, f"{alias.name} names {_name(asked.checkpoint)} now.")
    elif asked.outcome == Outcome.REFUSED:
        messages.error(request, f"{alias.name} stays where it is: see why in its history.")
    else:
        messages.info(request, f"{alias.name} waits for the evaluations that decide.")


@login_required
@require_POST
def rollback(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    try:
        messages.success(request, roll_back(actor=request.actor, alias=alias).text)
    except NotFound:
        raise
    except UserError as error:
        messages.error(request, error.message)
    return redirect("alias", alias.pk)


@login_required
@require_POST
def cancel_move(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    try:
        call_off(actor=request.actor, alias=alias)
    except NotFound:
        raise
    except UserError as error:
        messages.error(request, error.message)
    return redirect("alias", alias.pk)


@login_required
@require_POST
def delete(request: ActorRequest, alias_id: str) -> HttpResponse:
    alias = find_alias(request.actor, alias_id)
    delete_alias(actor=request.actor, alias=alias)
    messages.success(request, f"The alias {alias.name} was deleted; its checkpoint stays.")
    return redirect("aliases")


def write_create(request: ActorRequest) -> str:
    url = request.build_absolute_uri("/rest/aliases")
    return f'curl {KEY} {JSON} {url} \\\n  -d \'{{"name": "prod", "suite": "ID"}}\''


def write_examples(request: ActorRequest, alias: Alias) -> str:
    url = request.build_absolute_uri("/").rstrip("/")
    own = f"{url}/rest/aliases/{alias.pk}"
    body = f'{{"model": "{alias.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"curl {KEY} {JSON} {url}/v1/chat/completions \\\n  -d '{body}'\n\n"
        f'curl {KEY} {JSON} {own}/moves -d \'{{"checkpoint": "ID"}}\'\n'
        f"curl {KEY} -X POST {own}/rollback\n"
        f'curl {KEY} {JSON} {own}/rules -d \'{{"suite": "ID", "test": "not_worse", "margin": 2}}\''
    )
