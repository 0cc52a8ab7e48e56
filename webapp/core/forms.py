"""What a service refuses, shown beside the form field that it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.forms import BaseForm, BoundField, FloatField, IntegerField, JSONField, ValidationError
from django.forms.fields import InvalidJSONInput

from webapp.core.bodies import parse_json
from webapp.core.errors import NotFound, UserError
from webapp.core.templatetags.hone import rate


class StorableJSONField(JSONField):
    """Refuses what Python would read and no database stores, and what is nested without end."""

    def to_python(self, value: Any) -> Any:
        if isinstance(value, str) and value and not is_json(value):
            raise ValidationError(self.error_messages["invalid"], code="invalid")
        return super().to_python(value)

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What is none is shown again as it was typed."""
        if isinstance(data, str) and not is_json(data):
            return InvalidJSONInput(data)
        return super().bound_data(data, initial)


def is_json(text: str) -> bool:
    try:
        parse_json(text.encode())
    except UserError:
        return False
    return True


@contextmanager
def show_errors(form: BaseForm) -> Iterator[None]:
    """A `UserError` of the block becomes an error of the form; the code behind it goes on."""
    try:
        yield
    except NotFound:
        raise
    except UserError as error:
        form.add_error(error.field if error.field in form.fields else None, error.message)


def say_limits(form: BaseForm) -> None:
    """Numbers out of range are answered with what was given and what may be given instead."""
    for bound in form:
        if not isinstance(bound.field, IntegerField):
            continue
        wanted = describe_limits(bound)
        bound.field.error_messages["invalid"] = f"This is no number: give {wanted}."
        for code, word in (("min_value", "small"), ("max_value", "large")):
            bound.field.error_messages[code] = f"%(show_value)s is too {word}: give {wanted}."


def describe_limits(bound: BoundField) -> str:
    """`a whole number from 1 to 512`"""
    field = bound.field
    assert isinstance(field, IntegerField)  # floats are its children
    kind = "a number" if isinstance(field, FloatField) else "a whole number"
    low, high = field.min_value, field.max_value
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return kind
    return f"{kind} from {_write(low)} to {_write(high)}"


def _write(limit: float) -> str:
    return rate(limit) if 0 < limit < 1e-2 else f"{limit:,}"
