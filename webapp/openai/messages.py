"""The messages and tools of a chat, checked and brought into the form that chat templates read."""

from typing import Any

from webapp.core.bodies import parse_json
from webapp.core.errors import UserError
from webapp.core.fields import Fields

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
CHOICES = ("auto", "none")


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    messages = fields.list_of("messages", dict)
    if not messages:
        raise UserError("messages is empty: write one.", field="messages")
    return [read_message(Fields(each, f"messages.{at}.")) for at, each in enumerate(messages)]


def read_message(fields: Fields) -> dict[str, Any]:
    role = ROLES.get(fields.text("role"))
    if role is None:
        raise UserError(
            f"{fields.where}role is {fields.text('role')[:60]!r}; known ones are"
            f" {', '.join(ROLES)}.",
            field=f"{fields.where}role",
        )
    message: dict[str, Any] = {"role": role, "content": read_content(fields)}
    for name in ("name", "tool_call_id"):
        if fields.has(name):
            message[name] = fields.text(name)
    if role == "assistant" and fields.has("tool_calls"):
        calls = fields.list_of("tool_calls", dict)
        places = (f"{fields.where}tool_calls.{at}." for at in range(len(calls)))
        message["tool_calls"] = [
            read_call(Fields(*each)) for each in zip(calls, places, strict=True)
        ]
    return message


def read_content(fields: Fields) -> str:
    """Text, or parts that are all text. An assistant that called tools may have said nothing."""
    content = fields.values.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [Fields(each) for each in fields.list_of("content", dict)]
    other = next((each for each in parts if each.text("type", "text") != "text"), None)
    if other is not None:
        raise UserError(
            f"{fields.where}content has a part of type {other.text('type')[:60]}; the models of"
            " this installation read text only.",
            field=f"{fields.where}content",
        )
    return "".join(each.text("text") for each in parts)


def read_call(fields: Fields) -> dict[str, Any]:
    """Templates write a call's arguments themselves: they want the object, not its text."""
    function = fields.inner("function")
    try:
        read = parse_json(function.text("arguments", "{}").encode())
    except UserError:
        read = None
    if not isinstance(read, dict):
        raise UserError(
            f"{function.where}arguments is no JSON object in a string.",
            field=f"{function.where}arguments",
        )
    arguments = Fields({"arguments": read}, function.where).document("arguments")
    return {
        "id": fields.text("id", ""),
        "type": "function",
        "function": {"name": function.text("name"), "arguments": arguments},
    }


def read_tools(fields: Fields) -> list[dict[str, Any]]:
    """None where tool_choice says so. Whether to call one is the model's choice alone."""
    tools = [
        read_tool(Fields(each, f"tools.{at}."))
        for at, each in enumerate(fields.list_of("tools", dict))
    ]
    choice = fields.values.get("tool_choice") or "auto"
    if choice not in CHOICES:
        raise UserError(
            "tool_choice is auto or none here: a model cannot be made to call a tool.",
            field="tool_choice",
        )
    return [] if choice == "none" else tools


def read_tool(fields: Fields) -> dict[str, Any]:
    if fields.text("type") != "function":
        raise UserError(f"{fields.where}type is function.", field=f"{fields.where}type")
    function = fields.inner("function")
    function.text("name")
    function.inner("parameters").inner("properties")  # they are looked up when a call is read
    return {"type": "function", "function": fields.document("function")}
