"""Pages of suites and evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Count, QuerySet
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.curl import JSON, KEY
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors
from webapp.deployments.forms import offer_base_models
from webapp.deployments.views import find_target
from webapp.evals.answers import name_graders
from webapp.evals.forms import EvaluationForm, offer_versions
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.evals.naming import name_subject
from webapp.evals.services import LIVE, cancel_evaluation, list_ungraded, request_evaluation

ROWS_A_PAGE = 25
FILTERS = (("", "All"), ("wrong", "Wrong"), ("right", "Right"), ("unanswered", "With errors"))
SIDES = {"right": "gte", "wrong": "lt"}
RIGHT = 1.0  # graders that give parts of a point are right with the whole of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An evaluation in a table."""

    evaluation: Evaluation
    subject: str
    score: float | None

    @property
    def is_done(self) -> bool:
        return self.evaluation.status == Evaluation.Status.DONE

    @property
    def took(self) -> timedelta | None:
        began, ended = self.evaluation.started_at, self.evaluation.ended_at
        return ended - began if began and ended else None


def make_line(evaluation: Evaluation) -> Line:
    return Line(
        evaluation=evaluation, subject=name_subject(evaluation), score=evaluation.first_score
    )


def read_evaluations(actor: Actor) -> QuerySet[Evaluation]:
    """With all that a table's line needs, and without the suites' items."""
    rows = Evaluation.objects.visible_to(actor).defer("suite__items", "checkpoint__probe")
    return rows.select_related("suite", "checkpoint__run", "base_model").prefetch_related(
        "base_model__names"
    )


@login_required
@require_GET
def list_suites(request: ActorRequest) -> HttpResponse:
    suites = EvalSuite.objects.in_project(request.actor).defer("items")
    rows = suites.select_related("dataset_version__dataset").defer(
        "items", "dataset_version__report"
    )
    page = Paginator(
        rows.annotate(num_evaluations=Count("evaluations")).order_by("-created_at"), ROWS_A_PAGE
    ).get_page(request.GET.get("page"))
    recent = read_evaluations(request.actor).filter(project=request.actor.project)[:ROWS_A_PAGE]
    context = {
        "page": page,
        "lines": [make_line(each) for each in recent],
        "can_make": page.object_list or offer_versions(request.actor),
    }
    return render(request, "evals/list.html", context)


def find_suite(actor: Actor, suite_id: str) -> EvalSuite:
    rows = EvalSuite.objects.visible_to(actor).select_related("dataset_version__dataset")
    suite = rows.defer("dataset_version__report").filter(pk=suite_id).first()
    if suite is None:
        raise NotFound(f"There is no suite {suite_id}.")
    return suite


@login_required
@require_GET
def show_suite(request: ActorRequest, suite_id: str) -> HttpResponse:
    suite = find_suite(request.actor, suite_id)
    lines = [make_line(each) for each in read_evaluations(request.actor).filter(suite=suite)]
    page = Paginator(suite.items, ROWS_A_PAGE).get_page(request.GET.get("page"))
    context = {
        "suite": suite,
        "choice": describe_choice(suite),
        "lines": lines,
        "num_done": sum(line.is_done for line in lines),
        "extra_graders": list_figures(suite),
        **_choose_pair(lines),
        "bases": offer_base_models(),
        "form": EvaluationForm(actor=request.actor, initial={"suite": suite.pk}),
        "page": page,
        "items": list(enumerate(map(show_item, page), start=page.start_index())),
        "rest": write_rest(request, suite),
    }
    return render(request, "evals/suite.html", context)


def list_figures(suite: EvalSuite) -> list[str]:
    """What stands beside the score: its pass@k, and the other graders' means."""
    first, names = suite.first_grader, name_graders(suite)
    pass_at = suite.sampling.get("pass_at", ()) if names else ()
    return [f"{first}/pass@{k}" for k in pass_at] + names[1:]


def describe_choice(suite: EvalSuite) -> str:
    """How many items there are, and which of the rows they are."""
    if suite.status == EvalSuite.Status.BUILDING:
        return "a worker is making them"
    share = suite.selection.get("held_out_share", 1)
    if share >= 1:
        return f"{suite.num_items:,} items"
    return f"{suite.num_items:,} of the held-out {share:.0%}, split seed {suite.selection['seed']}"


def _choose_pair(lines: Sequence[Line]) -> dict[str, str]:
    """The first that was done beside the newest: most often the base and what came of it."""
    done = [line.evaluation.pk for line in lines if line.is_done]
    return {"chosen_a": done[-1], "chosen_b": done[0]} if done else {}


def write_rest(request: ActorRequest, suite: EvalSuite) -> str:
    url = request.build_absolute_uri("/rest/evaluations")
    return (
        f"curl {KEY} {JSON} \\\n"
        f'  -d \'{{"suite": "{suite.pk}", "checkpoint": "ID"}}\' \\\n  {url}\n\n'
        f"curl {KEY} {url}/ID/results"
    )


def show_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """The last message is what is asked; the ones before it fold away."""
    messages = item["messages"]
    return {
        "prompt": messages[-1]["content"],
        "before": messages[:-1],
        "target": item.get("target", ""),
        "row": item.get("row"),
    }


@login_required
@require_http_methods(["GET", "POST"])
def evaluate(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    initial = {"suite": request.GET.get("suite", ""), "target": request.GET.get("checkpoint", "")}
    data = request.POST.dict() if request.method == "POST" else None
    if data and "base" in data:
        data["target"] = data["base"]  # the button beside the chooser
    form = EvaluationForm(data, actor=request.actor, initial=initial)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            checkpoint, base_model = find_target(request.actor, form.cleaned_data["target"])
            evaluation = request_evaluation(
                actor=request.actor,
                suite=find_suite(request.actor, form.cleaned_data["suite"]),
                checkpoint=checkpoint,
                base_model=base_model,
                is_fresh=form.cleaned_data["is_fresh"],
            )
            return redirect("evaluation", evaluation.pk)
    status = 400 if form.errors else 200
    return render(request, "evals/evaluate.html", {"form": form}, status=status)


def find_evaluation(actor: Actor, evaluation_id: str) -> Evaluation:
    rows = Evaluation.objects.visible_to(actor).select_related(
        "suite__dataset_version__dataset", "checkpoint__run", "base_model"
    )
    rows = rows.defer("suite__dataset_version__report", "checkpoint__probe")
    evaluation = rows.filter(pk=evaluation_id).first()
    if evaluation is None:
        raise NotFound(f"There is no evaluation {evaluation_id}.")
    return evaluation


@login_required
@require_GET
def show_evaluation(request: ActorRequest, evaluation_id: str) -> HttpResponse:
    evaluation = find_evaluation(request.actor, evaluation_id)
    names = name_graders(evaluation.suite)
    grader = request.GET.get("grader", "")
    grader = grader if grader in names else evaluation.suite.first_grader
    results = filter_results(evaluation, grader, request.GET.get("show", ""))
    page = Paginator(results, ROWS_A_PAGE).get_page(request.GET.get("page"))
    siblings = read_evaluations(request.actor).filter(suite=evaluation.suite_id)
    done = siblings.filter(status=Evaluation.Status.DONE).exclude(pk=evaluation.pk)
    context = {
        "evaluation": evaluation,
        "subject": name_subject(evaluation),
        "is_live": evaluation.status in LIVE,
        "scores": [(name.replace("/", ", "), value) for name, value in evaluation.scores.items()]
        or [(name, None) for name in names],
        "num_ungraded": list_ungraded(evaluation).count(),
        "graders": names,
        "grader": grader,
        "show": request.GET.get("show", ""),
        "filters": FILTERS,
        "sampling": evaluation.served.get("sampling", evaluation.suite.sampling),
        "took": make_line(evaluation).took,
        "items_note": f"of {evaluation.suite.num_answers:,}",
        "page": page,
        "rows": [show_result(evaluation.suite, each, grader) for each in page],
        "others": [make_line(each) for each in done[:ROWS_A_PAGE]],
    }
    response = render(request, "evals/evaluation.html", context)
    if "HX-Request" in request.headers and not context["is_live"]:
        response.headers["HX-Refresh"] = "true"  # it has ended: there is more to do with it now
    return response


def filter_results(evaluation: Evaluation, grader: str, show: str) -> QuerySet[EvalResult]:
    results = evaluation.results.all()
    if show in SIDES:  # nothing is on either side of what nobody grades
        wanted = {f"scores__{grader}__{SIDES[show]}": RIGHT}
        return results.filter(**wanted) if grader else results.none()
    if show == "unanswered":
        return results.exclude(error="")
    if show == "ungraded":
        return list_ungraded(evaluation)
    return results


def show_result(suite: EvalSuite, result: EvalResult, grader: str) -> dict[str, Any]:
    score = result.scores.get(grader)
    return {
        **show_item(suite.items[result.index]),
        "number": result.index + 1,
        "result": result,
        "score": score,
        "is_waiting": not result.scores and not result.error,
        "others": [(name, value) for name, value in result.scores.items() if name != grader],
        "note": result.notes.get(grader, ""),
        "judge": result.judges.get(grader, ""),
    }


@login_required
@require_POST
def cancel(request: ActorRequest, evaluation_id: str) -> HttpResponse:
    evaluation = find_evaluation(request.actor, evaluation_id)
    check_can_write(request.actor, project_id=evaluation.project_id)
    cancel_evaluation(actor=request.actor, evaluation=evaluation)
    return redirect("evaluation", evaluation.pk)
