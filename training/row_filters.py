"""Filters of a dataset's rows: what each may be set to, and what it does in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.errors import InvalidInput
from training.patterns import check_compiles

Spec = Mapping[str, Any]
Check = Callable[[str, Any], Any]

MAX_FILTERS = 20
MAX_PATTERN = 1000
MAX_VALUE = 500
ROLES = ("system", "developer", "user", "assistant", "tool")
UNITS = ("characters", "tokens", "messages")
PLACES = ("anywhere", *ROLES)
LOSSES = ("never_learnt", "rose")


def number(low: float, high: float, kind: type = int) -> Check:
    def check(name: str, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (kind is int and value != int(value)):
            what = "a whole number" if kind is int else "a number"
            raise InvalidInput(f"{name} is {value!r:.60}: give {what} from {low:,} to {high:,}")
        return kind(value)

    return check


def choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise InvalidInput(f"{name} is {value!r:.60}: give one of {', '.join(choices)}")
        return str(value)

    return check


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r:.60}: give true or false")
    return value


def text(limit: int, *, may_be_empty: bool = False) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit or not (value or may_be_empty):
            raise InvalidInput(f"{name} is {value!r:.60}: give text of up to {limit} characters")
        return value

    return check


def pattern(name: str, value: Any) -> str:
    checked: str = text(MAX_PATTERN)(name, value)
    check_compiles(name, checked)
    return checked


CHECKS: dict[str, dict[str, Check]] = {
    "length": {
        "unit": choice(*UNITS),
        "least": number(0, 10**9),
        "most": number(0, 10**9),
        "base_model": text(200),
    },
    "contains": {
        "pattern": pattern,
        "where": choice(*PLACES),
        "ignore_case": flag,
        "drop": flag,
    },
    "role": {"role": choice(*ROLES), "drop": flag},
    "metadata": {
        "column": text(200),
        "value": text(MAX_VALUE, may_be_empty=True),
        "drop": flag,
    },
    "duplicates": {},
    "near_duplicates": {"threshold": number(0.5, 1, float)},
    "losses": {"run": text(40), "which": choice(*LOSSES)},
}
NEEDED = {
    "contains": ("pattern",),
    "role": ("role",),
    "metadata": ("column", "value"),
    "losses": ("run", "which"),
}


def check_filters(filters: Any) -> list[dict[str, Any]]:
    """In the order in which rows go through them."""
    if not isinstance(filters, list) or len(filters) > MAX_FILTERS:
        raise InvalidInput(f"filters is not a list of at most {MAX_FILTERS} filters")
    return [check_filter(f"filters[{place}]", each) for place, each in enumerate(filters)]


def check_filter(name: str, spec: Any) -> dict[str, Any]:
    named = spec.get("filter") if isinstance(spec, Mapping) else None
    if not isinstance(named, str) or named not in CHECKS:
        raise InvalidInput(f"{name}.filter is not one of {', '.join(CHECKS)}")
    kind, settings = named, {key: spec[key] for key in spec if key != "filter"}
    checks = CHECKS[kind]
    if unknown := sorted(str(key) for key in settings.keys() - checks.keys()):
        known = ", ".join(checks) or "none"
        raise InvalidInput(f"{name} has no setting {unknown[0]!r:.60}; {kind} has {known}")
    for key in NEEDED.get(kind, ()):
        if key not in settings:
            raise InvalidInput(f"{name} lacks {key}")
    checked = {key: checks[key](f"{name}.{key}", value) for key, value in settings.items()}
    if kind == "length":
        check_length(name, checked)
    return {"filter": kind, **checked}


def check_length(name: str, spec: Spec) -> None:
    if not {"least", "most"} & spec.keys():
        raise InvalidInput(f"{name} lacks least or most")
    if spec.get("least", 0) > spec.get("most", 10**9):
        raise InvalidInput(f"{name}: least is larger than most, so no row is kept")
    if spec.get("unit") == "tokens" and "base_model" not in spec:
        raise InvalidInput(f"{name} lacks base_model, whose tokens are counted")


def describe_filters(filters: Sequence[Spec]) -> list[str]:
    return [DESCRIPTIONS[spec["filter"]](spec) for spec in filters]


def describe_length(spec: Spec) -> str:
    low, high, unit = spec.get("least"), spec.get("most"), spec.get("unit", "characters")
    if low is None:
        return f"at most {high:,} {unit}"
    return f"at least {low:,} {unit}" if high is None else f"{low:,} to {high:,} {unit}"


def describe_contains(spec: Spec) -> str:
    where = spec.get("where", "anywhere")
    place = "" if where == "anywhere" else f" in a message of the {where}"
    verb = "without" if spec.get("drop") else "with"
    return f"{verb} a match of /{spec['pattern']}/{'i' if spec.get('ignore_case') else ''}{place}"


def describe_role(spec: Spec) -> str:
    return f"{'without' if spec.get('drop') else 'with'} a message of the {spec['role']}"


def describe_metadata(spec: Spec) -> str:
    return f"{spec['column']} {'is not' if spec.get('drop') else 'is'} “{spec['value']}”"


def describe_losses(spec: Spec) -> str:
    which = "never learned" if spec["which"] == "never_learnt" else "with a loss that rose"
    return f"without rows {which} in {spec['run']}"


DESCRIPTIONS: dict[str, Callable[[Spec], str]] = {
    "length": describe_length,
    "contains": describe_contains,
    "role": describe_role,
    "metadata": describe_metadata,
    "duplicates": lambda _: "each row once",
    "near_duplicates": lambda spec: (
        f"one of each group of near-duplicates (similarity {spec.get('threshold', 0.8):g} and up)"
    ),
    "losses": describe_losses,
}
