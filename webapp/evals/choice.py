"""Which evaluations an address compares: `?evaluations=&baseline=&grader=`, or `?a=&b=`."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.http import QueryDict

from webapp.accounts.models import Actor
from webapp.core.errors import NotFound
from webapp.evals.comparison import Comparison, check_number, compare_all
from webapp.evals.models import Evaluation

LETTERS = "ABCDEFGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The baseline is the first of them."""

    evaluations: Sequence[Evaluation]
    grader: str

    @property
    def baseline(self) -> Evaluation:
        return self.evaluations[0]

    def compare(self) -> list[Comparison]:
        return compare_all(self.baseline, self.evaluations[1:], grader=self.grader)

    @property
    def ids(self) -> str:
        return ",".join(each.pk for each in self.evaluations)

    @property
    def query(self) -> str:
        """What addresses the same comparison again."""
        query = QueryDict(mutable=True)
        query["evaluations"] = self.ids
        query["baseline"] = self.baseline.pk
        if self.grader:
            query["grader"] = self.grader
        return query.urlencode(safe=",")


def read_ids(query: QueryDict) -> list[str]:
    """Each once, the baseline first: the one that is named, else the first."""
    asked = ",".join(query.getlist("evaluations"))
    named = [part.strip() for part in asked.split(",")]
    ids = [each for each in dict.fromkeys(named) if each]
    if not ids:
        pair = [query.get(side, "") for side in ("a", "b")]
        return [each for each in pair if each]
    baseline = query.get("baseline", "")
    if not baseline:
        return ids
    return [baseline, *(each for each in ids if each != baseline)]


def read_choice(actor: Actor, query: QueryDict) -> Choice:
    """What this actor may not see does not exist. A pair may be one evaluation twice."""
    ids = read_ids(query)
    rows = Evaluation.objects.visible_to(actor).filter(pk__in=ids)
    rows = rows.select_related(
        "suite__dataset_version__dataset", "checkpoint__run__dataset_version__dataset", "base_model"
    ).defer(
        "suite__dataset_version__report",
        "checkpoint__run__dataset_version__report",
        "checkpoint__probe",
    )
    found = {row.pk: row for row in rows.prefetch_related("base_model__names")}
    for each in ids:
        if each not in found:
            raise NotFound(f"There is no evaluation {each[:80]}.")
    evaluations = [found[each] for each in ids]
    check_number(evaluations)
    return Choice(evaluations=evaluations, grader=query.get("grader", ""))
