"""The page of the retention rule: what it keeps, what it would delete, and why each one stays."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.checkpoints.bulk import act_on_many
from webapp.checkpoints.retention_forms import RuleForm, fill
from webapp.checkpoints.retention_plans import Plan, make_plan
from webapp.checkpoints.retention_rules import Keep
from webapp.checkpoints.retention_services import apply_rule, drop_rule, find_rule, save_rule
from webapp.core.curl import JSON, KEY
from webapp.core.errors import UserError
from webapp.core.forms import show_errors
from webapp.core.templatetags.hone import count, size

ITEMS_A_PAGE = 100
DRY_RUN = "dry_run"  # in the address: the parts of a rule that is not saved


@login_required
@require_http_methods(["GET", "POST"])
def show_rule(request: ActorRequest) -> HttpResponse:
    """A GET with parts of a rule tries them out, a POST saves them."""
    project_id = request.actor.project.pk
    rule = find_rule(project_id)
    is_trial = DRY_RUN in request.GET
    given = request.POST if request.method == "POST" else request.GET if is_trial else None
    form = RuleForm(given, initial=fill(rule), project_id=project_id)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            keep = form.read().to_dict()
            is_active = form.cleaned_data["is_active"]
            save_rule(actor=request.actor, keep=keep, is_active=is_active)
            messages.success(request, "The rule is saved.")
            return redirect("retention")
    plan = None
    if is_trial and form.is_valid():
        with show_errors(form):
            plan = make_plan(project_id, form.read())
    elif rule is not None and given is None:
        with show_errors(form):
            plan = make_plan(project_id, Keep.read(rule.keep))
    context = {
        "form": form,
        "rule": rule,
        "is_trial": is_trial,
        "plan": plan,
        "rest": write_rest(request),
        **_read_items(request, plan),
    }
    status = 400 if form.is_bound and form.errors else 200
    return render(request, "checkpoints/retention.html", context, status=status)


def _read_items(request: ActorRequest, plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {}
    only = request.GET.get("only", "")
    items = list(plan.items)
    if only in ("goes", "stays"):
        items = [item for item in items if item.goes == (only == "goes")]
    page = Paginator(items, ITEMS_A_PAGE).get_page(request.GET.get("page"))
    return {"page": page, "only": only}


def write_rest(request: ActorRequest) -> str:
    url = request.build_absolute_uri("/rest/retention")
    rule = """-d '{"keep": {"last": 1, "every": 500}, "is_active": false}'"""
    return (
        f"curl {KEY} {JSON} -X PUT {url} {rule}\n"
        f"curl {KEY} {url}/plan\n"
        f"curl {KEY} -X POST {url}/apply"
    )


@login_required
@require_POST
def apply(request: ActorRequest) -> HttpResponse:
    applied = apply_rule(actor=request.actor, seen_at=request.POST.get("seen_at", ""))
    said = f"{count(applied.num_deleted)} checkpoints deleted, {size(applied.freed_bytes)} freed."
    messages.success(request, said)
    return redirect("retention")


@login_required
@require_POST
def drop(request: ActorRequest) -> HttpResponse:
    drop_rule(actor=request.actor)
    messages.success(request, "The rule is gone: checkpoints stay until they expire.")
    return redirect("retention")


@login_required
@require_POST
def act_on_chosen(request: ActorRequest) -> HttpResponse:
    """What is chosen in the list of checkpoints."""
    outcome = act_on_many(
        actor=request.actor,
        ids=request.POST.getlist("chosen"),
        action=request.POST.get("action", ""),
    )
    if outcome.done:
        messages.success(request, outcome.describe())
    if refused := outcome.describe_refused():
        messages.error(request, refused)
    back = request.POST.get("back", "")
    if not back.startswith("?"):
        raise UserError("This form is damaged: open the list again.")
    return redirect(f"{request.path.removesuffix('chosen/')}{back}")
