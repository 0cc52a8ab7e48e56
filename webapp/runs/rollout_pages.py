"""The Rollouts tab of a run: one step's groups side by side, filtered and searched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from django.contrib.auth.decorators import login_required
from django.core.paginator import Page, Paginator
from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.counts import read_count
from webapp.core.errors import NotFound
from webapp.runs.models import Run
from webapp.runs.records import Rollout

GROUPS_SHOWN = 6
LONGEST_SEARCH = 200
RECIPES = ("rl", "self_play", "on_policy_distillation")  # whose runs learn from their own samples
FILTERS: Mapping[str, Q] = {
    "above": Q(advantage__gt=0),
    "below": Q(advantage__lt=0),
    "dropped": Q(is_dropped=True),
    "truncated": Q(stop_reason="length"),
}
FILTER_LABELS = (
    ("above", "Better than their group"),
    ("below", "Worse than their group"),
    ("dropped", "In dropped groups"),
    ("truncated", "Cut off"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutQuery:
    """What of a run's rollouts is asked for. `step` None: the newest one."""

    step: int | None = None
    text: str = ""
    only: str = ""  # of FILTERS
    is_everywhere: bool = False  # in all steps

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Self:
        step, only = query.get("step", ""), query.get("only", "")
        return cls(
            step=read_count(step, "step") if step else None,
            text=query.get("q", "").strip()[:LONGEST_SEARCH],
            only=only if only in FILTERS else "",
            is_everywhere=query.get("steps") == "all",
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.only or self.is_everywhere)

    def choose(self, run: Run, step: int | None) -> QuerySet[Rollout]:
        rows = run.rollouts.all()
        if not self.is_everywhere:
            rows = rows.filter(step=-1 if step is None else step)
        if self.only:
            rows = rows.filter(FILTERS[self.only])
        return rows.filter(completion__icontains=self.text) if self.text else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`share`: its reward's place between the least and the most of what is shown."""

    rollout: Rollout
    share: float
    is_found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCard:
    """One prompt and its answers, the best first."""

    step: int
    number: int
    row: int | None
    context: Sequence[Mapping[str, Any]]  # the messages before the last one
    question: str
    answers: Sequence[Answer]
    is_dropped: bool

    @property
    def mean(self) -> float:
        return sum(each.rollout.reward / len(self.answers) for each in self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPage:
    """`page` is of groups. `before` and `after` are the steps beside this one."""

    query: RolloutQuery
    step: int | None
    before: int | None
    after: int | None
    last: int | None
    page: Page[Any]
    cards: Sequence[GroupCard]
    num_found: int


def read_rollouts(run: Run, query: Mapping[str, str]) -> dict[str, Any]:
    asked = RolloutQuery.read(query)
    steps = run.rollouts.order_by("-step").values_list("step", flat=True).distinct()
    last = steps.first()
    step = last if asked.step is None else asked.step
    found = asked.choose(run, step)
    groups = found.order_by("-step", "group").values_list("step", "group").distinct()
    wanted = query.get("page") or find_page(groups, query.get("group", ""))
    page = Paginator(groups, GROUPS_SHOWN).get_page(wanted)
    shown = RolloutPage(
        query=asked,
        step=step,
        before=None if step is None else steps.filter(step__lt=step).first(),
        after=None if step is None else steps.filter(step__gt=step).order_by("step").first(),
        last=last,
        page=page,
        cards=make_cards(run, list(page), found if asked.is_filtered else None),
        num_found=found.count(),
    )
    return {"rollouts": shown, "filters": FILTER_LABELS}


def find_page(groups: Iterable[tuple[int, int]], group: str) -> int:
    """Where a link to one group leads; to none, or to one that is not there: the first page."""
    numbers = [str(number) for _, number in groups] if group else []
    return numbers.index(group) // GROUPS_SHOWN + 1 if group in numbers else 1


def make_cards(
    run: Run, groups: Sequence[tuple[int, int]], found: QuerySet[Rollout] | None
) -> list[GroupCard]:
    wanted = Q(pk=None)
    for step, group in groups:
        wanted |= Q(step=step, group=group)
    rows = list(run.rollouts.filter(wanted).defer("tokens").order_by("-reward", "index"))
    matches = None if found is None else set(found.filter(wanted).values_list("pk", flat=True))
    rewards = [row.reward for row in rows]
    least, most = min(rewards, default=0.0), max(rewards, default=0.0)
    # Rewards that begin at 0 are measured from there: a bar of 0.5 is half of one of 1.
    least = min(least, 0.0)
    answers = [
        Answer(
            rollout=row,
            share=measure_share(row.reward, least, most),
            is_found=matches is not None and row.pk in matches,
        )
        for row in rows
    ]
    return [make_card(group, [each for each in answers if is_of(each, group)]) for group in groups]


def measure_share(reward: float, least: float, most: float) -> float:
    """Of the way from the least to the most. By halves, whose differences are always finite."""
    return (reward / 2 - least / 2) / (most / 2 - least / 2) if most > least else 0.0


def is_of(answer: Answer, group: tuple[int, int]) -> bool:
    return (answer.rollout.step, answer.rollout.group) == group


def make_card(group: tuple[int, int], answers: Sequence[Answer]) -> GroupCard:
    first = answers[0].rollout
    return GroupCard(
        step=group[0],
        number=group[1],
        row=first.row,
        context=first.prompt[:-1],
        question=str(first.prompt[-1].get("content") or "") if first.prompt else "",
        answers=answers,
        is_dropped=first.is_dropped,
    )


@login_required
@require_GET
def show_rollout(request: ActorRequest, run_id: str, rollout_id: int) -> HttpResponse:
    """One answer token by token, with what it was worth."""
    rows = Rollout.objects.select_related("checkpoint", "run").filter(
        run__in=Run.objects.visible_to(request.actor), run=run_id, pk=rollout_id
    )
    rollout = rows.first()
    if rollout is None:
        raise NotFound("There is no such rollout.")
    return render(request, "runs/_rollout.html", {"rollout": rollout})
