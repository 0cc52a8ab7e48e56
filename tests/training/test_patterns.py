"""Patterns that people write."""

import pytest

from training.errors import InvalidInput
from training.patterns import check_compiles
from training.recipes.graders import check_grader
from training.row_filters import check_filters

BOMB = "(?:(?:[ab]{1000}){1000}){1000}"


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}",
        "(?:.{0,1000}\n){0,1000}",
    ],
)
def test_what_people_search_for_is_taken(pattern: str) -> None:
    check_compiles("it", pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (BOMB, "it repeats too much"),
        ("a{99999999}", "it repeats too much"),
        ("(?:" * 300 + "a" + "){1,9}" * 300, "it is nested too deeply"),
        ("(", "it is not a regular expression"),
    ],
)
def test_one_that_costs_too_much_to_compile_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        check_compiles("it", pattern)


def test_graders_and_filters_refuse_it() -> None:
    with pytest.raises(InvalidInput, match="repeats too much"):
        check_grader("regex", {"pattern": BOMB})
    with pytest.raises(InvalidInput, match="repeats too much"):
        check_filters([{"filter": "contains", "pattern": BOMB}])
