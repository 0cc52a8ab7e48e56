"""What was found wrong with a run, as badges beside its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from django import template

from webapp.runs.models import Run
from webapp.runs.records import Finding

register = template.Library()

MOST_WORDS = 2  # of one run in a row of a table


@register.inclusion_tag("runs/_badges.html")
def finding_badges(badges: Mapping[str, Sequence[Finding]], run: Run) -> dict[str, Any]:
    """`{% finding_badges badges run %}`: the newest ones by their word, and how many more."""
    found = badges.get(run.pk, ())
    return {"run": run, "findings": found[:MOST_WORDS], "num_more": len(found[MOST_WORDS:])}
