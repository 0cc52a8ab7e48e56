"""What a service refuses, shown beside the form field that it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.forms import BaseForm

from webapp.core.errors import NotFound, UserError


@contextmanager
def show_errors(form: BaseForm) -> Iterator[None]:
    """A `UserError` of the block becomes an error of the form; the code behind it goes on."""
    try:
        yield
    except NotFound:
        raise
    except UserError as error:
        form.add_error(error.field if error.field in form.fields else None, error.message)
