"""Graders: what an answer is worth, from 0 to 1, given the row's target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import regex  # type: ignore[import-untyped]

from training.errors import InvalidInput
from training.recipes.graders import check_grader, check_pattern, choose_column

Settings = Mapping[str, Any]
Grader = Callable[[str, str, Settings], float]

# Backtracking can take forever: the regex module gives up by the clock, which re cannot.
MAX_SEARCHED = 100_000
SEARCH_SECONDS = 1.0
MAX_DEPTH = 64
NUMBER = regex.compile(
    r"(?:(?<![\w)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion to be graded, with what it answers and what it is compared with."""

    messages: Sequence[Mapping[str, Any]]  # the prompt
    completion: str
    target: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns


def grade(name: str, completion: str, target: str, settings: Settings | None = None) -> float:
    """By a grader that runs here; the others need a sandbox, or a model that judges."""
    checked = check_grader(name, settings)
    return GRADERS[name](completion, target, checked)


def grade_inline(grader: Settings, answer: Answer) -> float:
    own = {key: value for key, value in grader.items() if key != "name"}
    return grade(grader["name"], answer.completion, find_target(grader, answer), own)


def find_target(grader: Settings, answer: Answer) -> str:
    """What this grader compares with: the target, or the column that it names."""
    column = choose_column(grader)
    if not column or (column == "target" and column not in answer.metadata):
        return answer.target
    if column not in answer.metadata:
        raise InvalidInput(f"the row has no column {column}, which {grader['name']} compares with")
    value = answer.metadata[column]
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def exact_match(completion: str, target: str, settings: Settings) -> float:
    """White space around does not count."""
    return float(fold(completion, settings).strip() == fold(target, settings).strip())


def contains(completion: str, target: str, settings: Settings) -> float:
    return float(fold(target, settings).strip() in fold(completion, settings))


def fold(text: str, settings: Settings) -> str:
    return text.casefold() if settings.get("ignore_case") else text


def numeric(completion: str, target: str, settings: Settings) -> float:
    """The last number of the answer against the last of the target."""
    wanted, found = find_last_number(target), find_last_number(completion)
    if wanted is None:
        raise InvalidInput(f"the target {target!r:.60} has no number: use another grader")
    return float(found is not None and abs(found - wanted) <= settings.get("tolerance", 1e-6))


def find_last_number(text: str) -> float | None:
    found = NUMBER.findall(text[-MAX_SEARCHED:])
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def match_regex(completion: str, target: str, settings: Settings) -> float:
    """`pattern`, or else the target, is searched for in the answer."""
    pattern = check_pattern("the target", settings.get("pattern", target))
    flags = regex.IGNORECASE if settings.get("ignore_case") else 0
    try:
        found = regex.search(pattern, completion[:MAX_SEARCHED], flags, timeout=SEARCH_SECONDS)
    except TimeoutError:
        raise InvalidInput(
            f"the pattern {pattern!r:.60} searched an answer for more than {SEARCH_SECONDS:g} s: "
            "write it without repeats inside repeats"
        ) from None
    return float(found is not None)


def valid_json(completion: str, _target: str, _settings: Settings) -> float:
    return float(parse_json(completion) is not None)


def json_equal(completion: str, target: str, _settings: Settings) -> float:
    """The same JSON value, whatever the order of keys, the white space and 1 against 1.0."""
    wanted, found = read_target(target), parse_json(completion)
    return float(found is not None and same_json(found[0], wanted))


def accepted_call(completion: str, target: str, _settings: Settings) -> float:
    """A call {"name", "arguments"}, where the target lists the accepted values of each argument.

    An argument that accepts "" may be absent, as in the Berkeley Function Calling Leaderboard.
    """
    wanted, found = read_target(target), parse_json(completion)
    if not is_call(wanted):
        raise InvalidInput(f'the target {target!r:.60} is not {{"name": ..., "arguments": ...}}')
    if not all(isinstance(values, list) for values in wanted["arguments"].values()):
        raise InvalidInput(f"the target {target!r:.60} lists no accepted values of an argument")
    call: Any = found[0] if found else None
    if not is_call(call) or call["name"] != wanted["name"]:
        return 0.0
    given, accepted = call["arguments"], wanted["arguments"]
    known = given.keys() <= accepted.keys()
    return float(known and all(is_accepted(given, name, accepted[name]) for name in accepted))


def is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("arguments"), dict) and "name" in value


def is_accepted(given: Mapping[str, Any], name: str, accepted: Any) -> bool:
    if name not in given:
        return "" in accepted
    return any(same_json(given[name], value) for value in accepted)


def read_target(target: str) -> Any:
    parsed = parse_json(target)
    if parsed is None:
        raise InvalidInput(f"the target {target!r:.60} is not JSON: use another grader")
    return parsed[0]


def parse_json(text: str) -> tuple[Any] | None:
    """The value in a tuple, because null is a value too."""
    try:
        return (orjson.loads(text.strip()),)
    except orjson.JSONDecodeError:
        return None


def same_json(left: Any, right: Any, depth: int = MAX_DEPTH) -> bool:
    """Values nested deeper than `depth` are different from everything."""
    if depth == 0 or isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            same_json(left[key], right[key], depth - 1) for key in left
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            same_json(a, b, depth - 1) for a, b in zip(left, right, strict=True)
        )
    return bool(left == right)


GRADERS: dict[str, Grader] = {
    "exact_match": exact_match,
    "contains": contains,
    "numeric": numeric,
    "regex": match_regex,
    "valid_json": valid_json,
    "json_equal": json_equal,
    "accepted_call": accepted_call,
}
