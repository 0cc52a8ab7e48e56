"""Numbers from the environment: taken, or refused by their name."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from webapp.settings import read_int


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("two", "HONE_THINGS is 'two'; say a whole number"),
        ("0", "HONE_THINGS is 0; say 1 or more"),
        ("-3", "HONE_THINGS is -3; say 1 or more"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("HONE_THINGS", value)
    with pytest.raises(ImproperlyConfigured, match=words):
        read_int("HONE_THINGS", 2, least=1)


@pytest.mark.parametrize(("value", "number"), [("", 2), ("7", 7)])
def test_a_number_that_is_not_set_has_its_default(
    monkeypatch: pytest.MonkeyPatch, value: str, number: int
) -> None:
    monkeypatch.setenv("HONE_THINGS", value)
    assert read_int("HONE_THINGS", 2, least=1) == number
