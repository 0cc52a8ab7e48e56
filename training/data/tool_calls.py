"""Calls of tools in an answer's text, as the model's chat template teaches the model to write them.

Known are templates whose calls stand between <tool_call> and </tool_call>: as JSON (Hermes, Qwen),
or as <function=name><parameter=key> (Qwen's coders).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import InvalidInput

MARK = "<tool_call>"
BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
FUNCTION = re.compile(r"<function=([^>]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?(?:</parameter>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


def check_tools(template: str | None) -> None:
    """Raises InvalidInput where the model was not taught to call tools."""
    if "tools" not in (template or ""):
        raise InvalidInput(
            "tools: the chat template of this model has no place for them: leave them out, or take"
            " a model that calls tools"
        )


def has_mark(template: str | None) -> bool:
    return MARK in (template or "")


def read_tool_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[ToolCall]]:
    """What is said before the calls, and the calls. A text with a broken one is all text."""
    calls = [_read_block(block, tools) for block in BLOCK.findall(text)]
    known = [call for call in calls if call is not None]
    if not calls or len(known) < len(calls):
        return text, []
    return text[: text.index(MARK)], known


def _read_block(block: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall | None:
    function = FUNCTION.match(block)
    if function is not None:
        return _read_function(function[1].strip(), function[2], tools)
    try:
        call = _read_json(block)
    except ValueError:
        return None
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
        return None
    return ToolCall(name=call["name"], arguments=json.dumps(arguments, ensure_ascii=False))


def _read_function(name: str, body: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    kinds = _find_kinds(name, tools)
    arguments = {key: _read_value(value, kinds.get(key)) for key, value in PARAMETER.findall(body)}
    return ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))


def _find_kinds(name: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """JSON Schema's type of each parameter, where the tool tells."""
    functions = (tool.get("function") or {} for tool in tools)
    schema = next((each.get("parameters") for each in functions if each.get("name") == name), None)
    properties = (schema or {}).get("properties") or {}
    return {key: each.get("type") for key, each in properties.items() if isinstance(each, dict)}


def _read_value(text: str, kind: Any) -> Any:
    if kind in (None, "string"):
        return text
    try:
        return _read_json(text)
    except ValueError:
        return text


def _read_json(text: str) -> Any:
    """What can be written again. A model writes NaN, half of a surrogate pair and thousands of
    brackets as well: each is a ValueError.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return value
