"""Kinds of rows: told by their columns, and each brought into its one normalised form.

conversation, prompt_completion: messages. preference: messages are the prompt, and the columns
`chosen` and `rejected` lists of messages. prompt: messages are the prompt, and `target` the
reference answer, where there is one. text: no messages, and the column `text`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import orjson

from training.data.messages import (
    Messages,
    Refused,
    check_answer,
    check_conversation,
    check_prompt,
    check_text,
    json_type,
    parse_messages,
)
from training.errors import InvalidInput

Kind = Literal["conversation", "prompt_completion", "preference", "prompt", "text"]
Parsed = tuple[Messages, dict[str, Any]]

KINDS: tuple[str, ...] = get_args(Kind)
QUESTIONS = ("prompt", "question", "instruction", "problem")
COMPLETIONS = ("completion", "response", "output")
TARGETS = ("target", "reference", "reference_answer", "ground_truth", "solution")
ANSWER = "answer"  # to learn by heart, or to be graded against: the columns do not tell
SIDES = ("chosen", "rejected")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # how the HH transcripts write who speaks
COLUMNS_WANTED = "messages; prompt and completion; chosen and rejected; prompt and target; or text"


def check_kind(kind: str) -> str:
    if kind not in KINDS:
        raise InvalidInput(f"kind is {kind!r:.60}: give one of {', '.join(KINDS)}")
    return kind


def check_columns(names: Sequence[str]) -> None:
    """Of a file that says its columns before its rows."""
    if not find_kinds(dict.fromkeys(names, "")):
        listed = ", ".join(name[:40] for name in names[:8])
        raise InvalidInput(f"the columns are {listed}: no kind of row has these; {COLUMNS_WANTED}")


def choose_kinds(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What most rows may be. More than one: the columns do not tell, and somebody has to."""
    found = Counter(kinds for row in rows if (kinds := find_kinds(row)))
    votes = Counter(dict.fromkeys(KINDS, 0))
    for kinds, number in found.items():
        votes.update(dict.fromkeys(kinds, number))
    if not found:
        return ()
    if votes["conversation"] and not votes["preference"] and not votes["text"]:
        return ("conversation",)  # of which the others are a part, or lack the answer
    best = votes.most_common(1)[0][0]
    voters = [kinds for kinds in found if best in kinds]
    return tuple(kind for kind in voters[0] if all(kind in kinds for kinds in voters))


def find_kinds(columns: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row with these columns may be; the likeliest first."""
    names = {name for name, value in columns.items() if value is not None}
    if names & set(SIDES):
        return ("preference",)
    if "messages" in names:
        return find_message_kinds(columns["messages"], names)
    if names & set(QUESTIONS):
        return find_question_kinds(names)
    if names & {"completion"}:
        return ("prompt_completion",)
    return ("text",) if "text" in names else ()


def find_message_kinds(messages: Any, names: set[str]) -> tuple[str, ...]:
    roles = [
        message.get("role")
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict)
    ]
    is_asked = bool(roles) and roles[-1] in ("user", "tool")
    has_target = bool(names & {*TARGETS, ANSWER})
    is_prompt = is_asked and (has_target or "assistant" not in roles)
    return ("prompt",) if is_prompt else ("conversation",)


def find_question_kinds(names: set[str]) -> tuple[str, ...]:
    if names & set(COMPLETIONS):
        return ("prompt_completion",)
    if names & set(TARGETS):
        return ("prompt",)
    return ("prompt_completion", "prompt") if ANSWER in names else ("prompt",)


def parse_columns(kind: str, columns: Any) -> Parsed:
    """The row's messages and every further column."""
    if not isinstance(columns, dict):
        raise Refused("not an object", 'the line is not an object like {"messages": [...]}')
    return PARSERS[kind](dict(columns))


def parse_conversation(columns: dict[str, Any]) -> Parsed:
    if "messages" in columns:
        messages = parse_messages(columns.pop("messages"))
    elif {"prompt", "completion"} & columns.keys():
        messages, columns = parse_completion(columns)
    else:
        raise Refused("no messages", "the row has neither messages nor prompt and completion")
    check_conversation(messages)
    return messages, columns


def parse_completion(columns: dict[str, Any]) -> Parsed:
    """A question and its answer, under the names that datasets give them."""
    if "messages" in columns:
        return parse_conversation(columns)
    question = take_question(columns)
    names = [name for name in (*COMPLETIONS, ANSWER) if name in columns] or ["completion"]
    answer = take_turns(columns, names[0], "assistant")
    check_answer(names[0], answer)
    return question + answer, columns


def take_question(columns: dict[str, Any]) -> Messages:
    names = [name for name in QUESTIONS if name in columns] or ["prompt"]
    question = take_turns(columns, names[0], "user")
    extra = columns.pop("input", "") if names[0] == "instruction" else ""
    if isinstance(extra, str) and extra.strip():
        # The Alpaca form: what the instruction speaks of stands below it.
        question[-1]["content"] += f"\n\n{extra}"
    check_prompt(question)
    return question


def take_turns(columns: dict[str, Any], name: str, role: str) -> Messages:
    """Text is one message of this role; a list is messages."""
    value = columns.pop(name, None)
    if isinstance(value, list):
        return parse_messages(value, name)
    check_text(name, value, may_be_empty=False)
    return [{"role": role, "content": value}]


def parse_prompt(columns: dict[str, Any]) -> Parsed:
    if "messages" in columns:
        messages = parse_messages(columns.pop("messages"))
        check_prompt(messages)
    else:
        messages = take_question(columns)
    for name in (*TARGETS, ANSWER):
        if columns.get(name) is not None:
            columns["target"] = write_target(name, columns.pop(name))
            break
    return messages, {key: value for key, value in columns.items() if value is not None}


def write_target(name: str, value: Any) -> str:
    """Graders compare with text: a number is written out, and JSON stays JSON."""
    if isinstance(value, str):
        check_text(name, value, may_be_empty=False)
        return value
    if isinstance(value, int | float | list | dict):
        return orjson.dumps(value, default=str).decode()
    raise Refused("content is not text", f"{name} is not text but {json_type(value)}")


def parse_preference(columns: dict[str, Any]) -> Parsed:
    for name in SIDES:
        if columns.get(name) is None:
            raise Refused("one side is missing", f"{name} is missing: a pair needs both sides")
    chosen, rejected = (take_side(columns, name) for name in SIDES)
    shared = count_shared(chosen, rejected)
    if chosen == rejected:
        raise Refused("equal sides", "chosen and rejected are the same: nothing is preferred")
    prompt = take_prompt(columns, shared=chosen[:shared])
    for name, side in zip(SIDES, (chosen[shared:], rejected[shared:]), strict=True):
        check_answer(name, side)
        columns[name] = side
    return prompt, columns


def take_side(columns: dict[str, Any], name: str) -> Messages:
    value = columns.pop(name)
    if isinstance(value, str) and TURN.match(value):
        return parse_transcript(name, value)
    return take_turns({name: value}, name, "assistant")


def parse_transcript(name: str, text: str) -> Messages:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...`"""
    _, *parts = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return parse_messages(turns, name)


def count_shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages both sides begin with."""
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def take_prompt(columns: dict[str, Any], *, shared: Messages) -> Messages:
    """What both sides begin with is the prompt; else a column says it."""
    if shared:
        check_prompt(shared)
        if columns.get("prompt") in (shared[-1]["content"], shared[0]["content"], shared):
            del columns["prompt"]
        return shared
    if "messages" in columns:
        messages = parse_messages(columns.pop("messages"))
        check_prompt(messages)
        return messages
    return take_question(columns)


def parse_text(columns: dict[str, Any]) -> Parsed:
    check_text("text", columns.get("text"), may_be_empty=False)
    return [], columns


PARSERS = {
    "conversation": parse_conversation,
    "prompt_completion": parse_completion,
    "preference": parse_preference,
    "prompt": parse_prompt,
    "text": parse_text,
}


def list_sides(metadata: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Both answers of a normalised preference row; None: it is of another kind."""
    chosen, rejected = metadata.get("chosen"), metadata.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return chosen, rejected
    return None
