"""Question-answer pairs: how a model is asked for them, and how its text is read as them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import regex  # type: ignore[import-untyped]

MAX_LENGTH = 4_000  # characters of a question or an answer: more is a model that runs on
HALF = regex.compile(r"[\ud800-\udfff]")  # of a character, which no database stores
NAMES = (("question", "answer"), ("q", "a"), ("prompt", "completion"), ("instruction", "output"))
# "Q: ...", "**Question 3:** ...", "1. Question - ...", and the same for answers
LABEL = regex.compile(
    r"^[\s\-*#>]*(?:\d+[.)]\s*)?\**(question|answer|q|a)\s*\d*\**\s*[:.)\-]\**[ \t]*",
    regex.IGNORECASE | regex.MULTILINE,
)
INSTRUCTION = (
    "Read the passage. Write {pairs} that can be answered from it alone, and the answer to each."
    ' Write each as one line of JSON, {{"question": "...", "answer": "..."}}, and nothing else.'
    "\n\nPassage:\n\n{passage}"
)

Pair = tuple[str, str]


def write_request(passage: str, *, num_pairs: int) -> list[dict[str, str]]:
    pairs = "one question" if num_pairs == 1 else f"{num_pairs} questions"
    return [{"role": "user", "content": INSTRUCTION.format(pairs=pairs, passage=passage)}]


def read_pairs(text: str, *, most: int) -> list[Pair]:
    """The pairs of an answer, each once, in whatever way the model has written them."""
    found = list(read_json(text)) or list(read_labels(text))
    clean = ((question.strip(), answer.strip()) for question, answer in found)
    kept = [pair for pair in clean if is_pair(*pair)]
    return list(dict.fromkeys(kept))[:most]


def is_pair(question: str, answer: str) -> bool:
    return all(
        0 < len(text) <= MAX_LENGTH and "\x00" not in text and not HALF.search(text)
        for text in (question, answer)
    )


def read_json(text: str) -> Iterator[Pair]:
    """Every object that stands anywhere in the text; what is cut off at its end is left out."""
    decoder = json.JSONDecoder()
    place = 0
    while (start := text.find("{", place)) >= 0:
        try:
            value, place = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # or a number of thousands of digits
            place = start + 1
            continue
        yield from read_object(value)


def read_object(value: Any) -> Iterator[Pair]:
    if isinstance(value, list):
        for each in value:
            yield from read_object(each)
    if not isinstance(value, Mapping):
        return
    folded = {str(key).casefold(): each for key, each in value.items()}
    for question, answer in NAMES:
        if isinstance(folded.get(question), str) and isinstance(folded.get(answer), str):
            yield folded[question], folded[answer]
            return
    for each in value.values():
        if isinstance(each, list):
            yield from read_object(each)


def read_labels(text: str) -> Iterator[Pair]:
    """A question is what stands behind its label, and so is the answer that follows it."""
    labels = list(LABEL.finditer(text))
    ends = [*[label.start() for label in labels[1:]], len(text)]
    asked = ""
    for label, end in zip(labels, ends, strict=False):
        said = text[label.end() : end].strip().strip("*").strip()
        if label[1].casefold().startswith("q"):
            asked = said
        elif asked:
            yield asked, said
            asked = ""
