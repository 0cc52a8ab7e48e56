"""How a call ended: an answer, a refusal in a sentence, or something that must not happen."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tinker
from tinker.cli.exceptions import TinkerCliError

SUPPORTED = "supported"
REFUSED = "refused"
UNAVAILABLE = "unavailable"  # this SDK has no such call
BROKEN = "broken"  # an answer the SDK or the case cannot use, a server's error, no answer

# What differs from one run of the suite to the next.
CHANGING = (
    (re.compile(r"ses-[0-9a-z]+"), "SESSION"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "SERVER"),
    (re.compile(r"(/tmp|/private|/var)/[^\s'\"]+"), "FOLDER"),
)


class HalfRefusedError(Exception):
    """A method answers and its async form does not, or the other way round."""

    def __init__(self, form: str) -> None:
        super().__init__(form)
        self.form = form


# What a command prints of an answer that it could not use.
NO_REFUSALS = (
    "API error",
    "Connection failed",
    "Failed to",
    "Internal server error",
    "Request timeout",
)
# What the SDK says of an answer that it could not use.
UNREADABLE = (
    "deserializ",
    "exceeded",
    "retrieving result",
    "status",
    "the server returned",
    "validation error",
)
UNEXPECTED = "Unexpected error occurred"  # by the command: what the SDK itself has raised


@dataclass(frozen=True)
class Ending:
    status: str
    sentence: str = ""


def describe_error(error: BaseException) -> Ending:
    for kind, describe in KINDS:
        if isinstance(error, kind):
            return describe(error)
    if isinstance(error, AssertionError):
        return Ending(BROKEN, str(error) or "The answer is not what was asked for.")
    return Ending(BROKEN, f"{type(error).__name__}: {error}")


def describe_status(error: tinker.APIStatusError) -> Ending:
    """A 4xx whose body is {"detail": sentence}."""
    body = error.body
    if 400 <= error.status_code < 500 and isinstance(body, dict) and body.get("detail"):
        return Ending(REFUSED, str(body["detail"]))
    return Ending(BROKEN, f"{error.status_code}: {body}")


def describe_failed_future(error: Any) -> Ending:
    """The SDK's frame around the server's sentence differs from version to version."""
    text = str(error).removeprefix("Request failed: ")
    sentence = re.split(r" for self\.request_id=", text)[0]
    is_users = getattr(error.category, "value", error.category) == "user"
    return Ending(REFUSED if is_users else BROKEN, sentence)


def describe_command(error: Any) -> Ending:
    """What the command prints; a sentence of the server's is inside of it."""
    details = error.details or ""
    detail = re.search(r"""['"]detail['"]: (['"])(.*?)\1}""", details)
    if detail:
        return Ending(REFUSED, detail[2])
    if error.message.startswith(UNEXPECTED) and error.__context__ is not None:
        return describe_error(error.__context__)
    if error.message.startswith(NO_REFUSALS):
        return Ending(BROKEN, f"{error.message} {details}")
    return Ending(REFUSED, f"The command itself says: {error.message}. {details}".strip())


def describe_own(error: BaseException) -> Ending:
    """The SDK refused it before anything was sent, or could not read what came."""
    text = str(error).splitlines()[0]
    if any(words in text for words in UNREADABLE):
        return Ending(BROKEN, text)
    return Ending(REFUSED, f"The SDK itself says: {text}")


def describe_half(error: HalfRefusedError) -> Ending:
    """One form of two: an assertion in it is the SDK's, before anything was sent."""
    cause = error.__cause__
    assert cause is not None
    is_own = isinstance(cause, AssertionError)
    ending = describe_own(cause) if is_own else describe_error(cause)
    return Ending(ending.status, f"{error.form} alone: {ending.sentence}")


KINDS: tuple[tuple[Any, Callable[[Any], Ending]], ...] = (
    (tinker.APIStatusError, describe_status),
    (tinker.RequestFailedError, describe_failed_future),
    (TinkerCliError, describe_command),
    (HalfRefusedError, describe_half),
    ((ValueError, RuntimeError, NotImplementedError), describe_own),
)


def settle(ending: Ending) -> Ending:
    """Without the ids and folders of this one run."""
    sentence = ending.sentence
    for pattern, word in CHANGING:
        sentence = pattern.sub(word, sentence)
    return Ending(ending.status, sentence.strip())
