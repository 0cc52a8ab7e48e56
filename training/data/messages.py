"""Messages of a row, checked one by one: who says what, and what a conversation has to have."""

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")

Messages = list[dict[str, Any]]


class Refused(Exception):  # noqa: N818 - never leaves the readers of rows
    """What is wrong with one row."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def check_text(name: str, value: Any, *, may_be_empty: bool) -> None:
    if value is None:
        raise Refused("a field is missing", f"{name} is missing")
    if not isinstance(value, str):
        raise Refused("content is not text", f"{name} is not text but {json_type(value)}")
    if not may_be_empty and not value.strip():
        raise Refused("empty text", f"{name} is empty")
    if "\x00" in value:
        # PostgreSQL stores no such text, and no tokenizer was trained on one.
        raise Refused("NUL character", f"{name} has a NUL character")


def json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "null")


def parse_messages(messages: Any, name: str = "messages") -> Messages:
    if not isinstance(messages, list):
        raise Refused(f"{name} is not a list", f"{name} is not a list but {json_type(messages)}")
    within = "" if name == "messages" else f"{name}: "
    return [
        parse_message(f"{within}message {place}", message)
        for place, message in enumerate(messages, start=1)
    ]


def parse_message(name: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Refused("a message is not an object", f"{name} is not an object with role, content")
    # Parquet gives every message every field that one of them has.
    kept = {key: value for key, value in message.items() if value is not None}
    role = kept.get("role")
    if role not in ROLES:
        listed = ", ".join(ROLES)
        raise Refused(
            "unknown role", f"{name} has the role {str(role)[:40]!r}, not one of {listed}"
        )
    if "tool_calls" in kept:
        raise Refused("tool_calls", f"{name} has tool_calls: write the call as text in content")
    check_text(f"{name} ({role}): content", kept.get("content"), may_be_empty=role != "assistant")
    if kept.get("weight", 1) not in (0, 1):
        raise Refused("wrong weight", f"{name} has a weight that is neither 0 nor 1")
    return kept


def check_conversation(messages: Sequence[Mapping[str, Any]]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise Refused("no assistant turn", "the row has no assistant turn: nothing to learn from")
    if all(message.get("weight", 1) == 0 for message in answers):
        raise Refused("no assistant turn", "every assistant turn has weight 0: nothing to learn")
    if messages[0]["role"] == "assistant":
        raise Refused("starts with assistant", "message 1 is the assistant's: nobody asked")


def check_prompt(messages: Sequence[Mapping[str, Any]]) -> None:
    """What is asked: it ends where the assistant has to go on."""
    if not messages:
        raise Refused("no prompt", "the prompt has no message: nothing is asked")
    if messages[0]["role"] == "assistant":
        raise Refused("starts with assistant", "message 1 is the assistant's: nobody asked")
    if messages[-1]["role"] not in ("user", "tool"):
        role = messages[-1]["role"]
        raise Refused(
            "prompt ends wrongly", f"the prompt ends with the {role}'s message, not the user's"
        )


def check_answer(name: str, messages: Sequence[Mapping[str, Any]]) -> None:
    """What is said to a prompt: the assistant has the first word and the last."""
    if not messages:
        raise Refused("one side is missing", f"{name} has no answer of its own")
    for message, which in ((messages[0], "begins"), (messages[-1], "ends")):
        if message["role"] != "assistant":
            reason = f"{name} {which} with the {message['role']}'s message, not the assistant's"
            raise Refused("no assistant turn", reason)
