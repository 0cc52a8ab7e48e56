"""What graders there are: what each compares, where it runs, and which settings it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from training.errors import InvalidInput
from training.patterns import check_compiles
from training.recipes.fields import Check, check_fields, one_of, real, whole, yes_or_no

Place = Literal["inline", "sandbox", "judge"]

MAX_PATTERN = 1000
MAX_RUBRIC = 20_000
MAX_NAME = 200
MAX_SCHEMA = 50_000
MAX_DEPTH = 64
MAX_SECONDS = 60
# reasoning-gym's tasks whose scorers evaluate an answer as Python.
READS_LISTS = frozenset({"n_queens", "binary_matrix", "spiral_matrix", "string_insertion"})
READS_EXPRESSIONS = frozenset(
    {
        "countdown",
        "puzzle24",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
    }
)
EVALUATING = READS_LISTS | READS_EXPRESSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`place` "sandbox": what is graded may run, or take for ever; "judge": a model says it."""

    label: str
    place: Place = "inline"
    settings: Mapping[str, Check] = field(default_factory=dict)
    needs_target: bool = True
    column: str = ""  # of the row, that holds what it compares with; "": the last answer
    also: tuple[str, ...] = ()  # columns that it reads where a row has them


def text(limit: int) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > limit:
            raise InvalidInput(f"{name} is not a text of 1 to {limit:,} characters")
        return value

    return check


def check_pattern(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATTERN:
        raise InvalidInput(f"{name} is not a pattern of at most {MAX_PATTERN} characters")
    check_compiles(name, value)
    return value


def check_schema(name: str, value: Any) -> Mapping[str, Any] | bool:
    if not isinstance(value, Mapping | bool):
        raise InvalidInput(f"{name} is not a JSON schema: give an object")
    if len(str(value)) > MAX_SCHEMA or not is_shallow(value):
        raise InvalidInput(
            f"{name} is too large: at most {MAX_SCHEMA:,} characters and {MAX_DEPTH} levels"
        )
    return value


def is_shallow(value: Any, depth: int = MAX_DEPTH) -> bool:
    if not depth:
        return False
    if isinstance(value, Mapping):
        return all(is_shallow(each, depth - 1) for each in value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(is_shallow(each, depth - 1) for each in value)
    return True


SECONDS = real(0.1, MAX_SECONDS)
CASE: dict[str, Check] = {"ignore_case": yes_or_no}
KINDS: dict[str, Kind] = {
    "exact_match": Kind(label="Exact match: the answer is the target", settings=CASE),
    "contains": Kind(label="Contains: the target stands in the answer", settings=CASE),
    "numeric": Kind(
        label="Numeric: the last number is the target's", settings={"tolerance": real(0, 1e12)}
    ),
    "math": Kind(
        label="Math: the answer is equal to the target as mathematics",
        place="sandbox",
        settings={"seconds": SECONDS},
    ),
    "regex": Kind(
        label="Regular expression: found in the answer",
        settings={"pattern": check_pattern, **CASE},
    ),
    "valid_json": Kind(label="Valid JSON: the answer can be read", needs_target=False),
    "json_equal": Kind(label="JSON equal: the same value as the target"),
    "json_schema": Kind(
        label="JSON schema: the answer is valid under it",
        place="sandbox",
        settings={"schema": check_schema, "seconds": SECONDS},
        needs_target=False,
        column="schema",
    ),
    "accepted_call": Kind(
        label="Accepted call: a function call that the target accepts", column="target"
    ),
    "unit_tests": Kind(
        label="Unit tests: the answer's code passes the row's tests",
        place="sandbox",
        settings={
            "seconds": SECONDS,
            "memory_mib": whole(16, 4096),
            "partial": yes_or_no,
            "entry": text(MAX_NAME),
        },
        needs_target=False,
        column="tests",
        also=("entry", "entry_point"),
    ),
    "reasoning_gym": Kind(
        label="Reasoning Gym: scored by the task that made the row",
        place="sandbox",
        settings={"task": text(MAX_NAME), "seconds": SECONDS},
        needs_target=False,
        column="entry",
        also=("task", "source_dataset"),
    ),
    "llm_judge": Kind(
        label="Judge: a model scores the answer by a rubric",
        place="judge",
        settings={
            "judge": text(MAX_NAME),
            "rubric": text(MAX_RUBRIC),
            "max_tokens": whole(16, 8192),
            "reference": one_of(("show", "hide")),
        },
        needs_target=False,
    ),
}
REQUIRED: dict[str, tuple[str, ...]] = {"llm_judge": ("judge", "rubric")}
SHARED: dict[str, Check] = {"column": text(MAX_NAME), "weight": real(-1000, 1000)}


def check_grader(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A grader's settings, checked; `weight` is how much it counts in a reward."""
    if name not in KINDS:
        raise InvalidInput(f"there is no grader {name!r:.60}: use one of {', '.join(KINDS)}")
    known = {**KINDS[name].settings, **SHARED}
    whose = f"the grader {name}"
    checked = check_fields(settings or {}, known, name=whose, within=f"{whose}: ")
    for required in REQUIRED.get(name, ()):
        if required not in checked:
            raise InvalidInput(f"the grader {name} needs its {required}")
    return checked


def check_graders(graders: Any) -> list[dict[str, Any]]:
    """`[{"name": ..., ...settings}]`, each checked; one of a name."""
    if not isinstance(graders, Sequence) or isinstance(graders, str) or not graders:
        raise InvalidInput("graders are a list of at least one grader")
    checked: list[dict[str, Any]] = []
    for grader in graders:
        if not isinstance(grader, Mapping) or not isinstance(grader.get("name"), str):
            raise InvalidInput(f'a grader is {{"name": ..., settings}}, not {grader!r:.60}')
        own = {key: value for key, value in grader.items() if key != "name"}
        checked.append({"name": grader["name"], **check_grader(grader["name"], own)})
    names = [grader["name"] for grader in checked]
    if len(set(names)) < len(names):
        raise InvalidInput("name each grader once")
    return checked


def choose_column(grader: Mapping[str, Any]) -> str:
    """Where what it compares with stands; "": the row's last answer, or its target."""
    return str(grader.get("column", KINDS[grader["name"]].column))


def list_columns(grader: Mapping[str, Any]) -> list[str]:
    """Every column of a row that this grader reads."""
    return [column for column in (choose_column(grader), *KINDS[grader["name"]].also) if column]


def offer_kinds() -> list[tuple[str, str]]:
    return [(name, kind.label) for name, kind in KINDS.items()]
