"""Whether an answer is JSON that is valid under a schema. For the sandbox: patterns backtrack."""

from collections.abc import Mapping
from typing import Any

import orjson
from jsonschema import SchemaError
from jsonschema.validators import validator_for

from training.errors import InvalidInput
from training.recipes.graders import check_schema
from training.recipes.grading import parse_json
from training.recipes.grading_code import find_block


def matches_schema(completion: str, schema: Any) -> tuple[float, str]:
    """The score, and what is wrong with the answer."""
    validator = make_validator(schema)
    parsed = parse_json(find_block(completion))
    if parsed is None:
        return 0.0, "It is not JSON."
    first = next(validator.iter_errors(parsed[0]), None)
    if first is None:
        return 1.0, ""
    return 0.0, f"At {first.json_path}: {first.message}"[:300]


def make_validator(schema: Any) -> Any:
    schema = check_schema("the schema", read_schema(schema))
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidInput(f"the schema is none: {error.message[:200]}") from error
    return kind(schema)


def read_schema(schema: Any) -> Any:
    """A column may hold it as text."""
    if not isinstance(schema, str):
        return schema if isinstance(schema, bool) else dict(check_is_object(schema))
    try:
        return orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the schema is not JSON: {error}") from error


def check_is_object(schema: Any) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        raise InvalidInput("the schema is not an object")
    return schema
