"""Runs an answer's code and a row's tests in two processes, so that the code cannot see the tests.

The tests call the code's functions through a pipe and compare the values that come back: plain
values, or handles of objects that stay with the code. Nothing that the code does to its own
process (leaving it, rewriting comparisons, reading its memory) makes a test pass.
"""

import ast
import builtins
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from traceback import walk_tb
from types import CodeType, FunctionType
from typing import Any

import regex  # type: ignore[import-untyped]

from training.errors import InvalidInput

MAX_LINE = 4_000_000
MAX_OUTPUT = 1_000_000
MAX_DEPTH = 40
TESTS = "tests"  # what a traceback calls their file
FENCE = regex.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", regex.M | regex.S)


SEVERAL = (list, tuple, set, frozenset)
SEVERAL_BY_NAME: dict[str, Any] = {kind.__name__: kind for kind in SEVERAL}


def find_block(completion: str) -> str:
    """The last fenced block; where there is none, the whole answer."""
    found = FENCE.findall(completion, timeout=1.0)
    return str(found[-1]) if found else completion


def encode(value: Any, objects: dict[int, Any], depth: int = MAX_DEPTH) -> Any:
    """Plain values by value, tagged; everything else by a number."""
    if not depth:
        raise ValueError("a value is nested too deeply")
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in SEVERAL:
        return {kind.__name__: [encode(each, objects, depth - 1) for each in value]}
    if kind is dict:
        pairs = [[encode(part, objects, depth - 1) for part in pair] for pair in value.items()]
        return {"dict": pairs}
    return encode_other(value, objects)


def encode_other(value: Any, objects: dict[int, Any]) -> Any:
    if type(value) in (bytes, complex):
        return {type(value).__name__: repr(value)}
    if isinstance(value, Remote):
        return {"object": value._number}
    objects[id(value)] = value
    return {"object": id(value)}


def decode(value: Any, wire: "Wire | None", objects: Mapping[int, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "object":
        return objects[content] if wire is None else Remote(wire, content)
    if kind == "dict":
        return {decode(k, wire, objects): decode(v, wire, objects) for k, v in content}
    if kind in SEVERAL_BY_NAME:
        return SEVERAL_BY_NAME[kind](decode(each, wire, objects) for each in content)
    return decode_bytes(content) if kind == "bytes" else complex(content)


def decode_bytes(text: str) -> bytes:
    return text[2:-1].encode().decode("unicode_escape").encode("latin-1")


class Wire:
    """Lines of JSON over a pair of pipes."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads = os.fdopen(reads, "rb")
        self.writes = os.fdopen(writes, "wb")

    def send(self, message: Any) -> None:
        self.writes.write(json.dumps(message).encode() + b"\n")
        self.writes.flush()

    def receive(self) -> Any:
        line = self.reads.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError("the code's process ended" if not line else "an answer is too long")
        return json.loads(line)

    def ask(self, verb: str, *parts: Any) -> Any:
        """What the code's process answers, or raises."""
        self.send({"verb": verb, "parts": [encode(each, {}) for each in parts]})
        answer = self.receive()
        if "raised" in answer:
            raise find_exception(answer["raised"])(str(answer.get("text", ""))[:500])
        return decode(answer["value"], self, {}), answer.get("changed", [])


def find_exception(name: Any) -> type[Exception]:
    found = getattr(builtins, str(name), None)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return type(str(name)[:80], (Exception,), {})


class Remote:
    """An object that stays with the code: calls and questions go there, plain values come back."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire, self._number = wire, number

    def _ask(self, verb: str, *parts: Any) -> Any:
        return self._wire.ask(verb, self, *parts)[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value, changed = self._wire.ask("call", self, list(args), kwargs)
        for number, content in changed:  # what a function did to its arguments in place
            refill(args[number], decode(content, self._wire, {}))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("equal", other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __len__(self) -> int:
        return int(self._ask("length"))

    def __bool__(self) -> bool:
        return bool(self._ask("truth"))

    def __str__(self) -> str:
        return str(self._ask("text"))

    def __contains__(self, item: Any) -> bool:
        return bool(self._ask("contains", item))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set_item", key, value)

    def __iter__(self) -> Iterator[Any]:
        return iter_remote(self._ask("iterator"))

    def __next__(self) -> Any:
        return self._ask("next")


def iter_remote(values: Any) -> Iterator[Any]:
    while True:
        try:
            yield values.__next__()
        except StopIteration:
            return


def refill(argument: Any, content: Any) -> None:
    if isinstance(argument, list):
        argument[:] = content
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(content)


def run_tests(wire: Wire, tests: Any, entry: str, *, partial: bool) -> tuple[float, str]:
    """In the process that knows the tests. The score, and what failed first."""
    if isinstance(tests, list) and tests and all(isinstance(each, dict) for each in tests):
        return share(check_outputs(wire, tests), len(tests), partial)
    compiled = [compile_test(each) for each in read_sources(tests)]
    if not entry and any(map(waits_for_entry, read_sources(tests))):
        raise InvalidInput(
            "the tests only define check(candidate): name the entry that it is to test"
        )
    try:
        names = read_names(wire)
    except CodeFailedError as error:
        return 0.0, f"The code itself: {error}"[:300]
    return share(check_tests(names, compiled, entry), len(compiled), partial)


def read_sources(tests: Any) -> list[str]:
    sources = [tests] if isinstance(tests, str) else tests
    if not isinstance(sources, list) or not sources or not all(map(is_source, sources)):
        raise InvalidInput(
            "the tests are neither Python, nor a list of it, nor a list of input and output"
        )
    return sources


def is_source(test: Any) -> bool:
    return isinstance(test, str) and bool(test.strip())


class CodeFailedError(Exception):
    """The answer's code raised, ended its process or spoke out of turn."""


def read_names(wire: Wire) -> dict[str, Any]:
    """What the code has defined."""
    try:
        began = wire.receive()
        if "raised" in began:
            raise CodeFailedError(f"{began['raised']}: {began.get('text', '')}")
        return {str(name): decode(value, wire, {}) for name, value in began["names"].items()}
    except (EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CodeFailedError(f"{error or type(error).__name__}") from error


def compile_test(source: str) -> Any:
    try:
        return compile(source, TESTS, "exec")
    except (SyntaxError, ValueError) as error:
        raise InvalidInput(f"the tests are not Python: {error}") from error


def waits_for_entry(source: str) -> bool:
    """Without one it would never be called, and every answer would pass."""
    tree = ast.parse(source)
    is_defined = any(
        isinstance(each, ast.FunctionDef) and each.name == "check" for each in tree.body
    )
    calls = (each.func for each in ast.walk(tree) if isinstance(each, ast.Call))
    return is_defined and not any(isinstance(f, ast.Name) and f.id == "check" for f in calls)


def share(failures: Sequence[str], count: int, partial: bool) -> tuple[float, str]:
    passed = 1 - len(failures) / count
    return (passed if partial or not failures else 0.0), (failures[0] if failures else "")


def check_tests(names: Mapping[str, Any], tests: Sequence[CodeType], entry: str) -> list[str]:
    failures = []
    for test in tests:
        known = hide_builtins(names, test, entry)
        scope: dict[str, Any] = {"__name__": "tests", **known}
        if entry:
            scope["candidate"] = names.get(entry)
        try:
            exec(test, scope)  # the row's own, in the sandbox
            check = scope.get("check")
            if entry and callable(check) and check is not known.get("check"):
                check(scope["candidate"])
            for function in list_functions(scope):
                function()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a test raises, it failed
            failures.append(f"{find_line(error)}{type(error).__name__} {error}".strip()[:300])
    return failures


def list_functions(scope: Mapping[str, Any]) -> list[FunctionType]:
    """Tests as pytest finds them: defined and not called, they would pass whatever the code does.
    The code's own functions are none of these here.
    """
    return [
        each
        for name, each in scope.items()
        if name.startswith("test") and isinstance(each, FunctionType) and not count_arguments(each)
    ]


def count_arguments(function: FunctionType) -> int:
    code = function.__code__
    return code.co_argcount + code.co_kwonlyargcount


def hide_builtins(names: Mapping[str, Any], test: CodeType, entry: str) -> dict[str, Any]:
    """A test of `f` that says abs(f(1) - 2) < 1e-6 means its own abs, whatever the code calls so.
    Only where it asks for nothing else of the code's is that what it tests."""
    if not list_names(test) & names.keys() - vars(builtins).keys() and not entry:
        return dict(names)
    return {name: names[name] for name in names if name == entry or not hasattr(builtins, name)}


def list_names(code: CodeType) -> set[str]:
    """Everything that it asks for by name, its functions too."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(list_names, inner))


def find_line(error: BaseException) -> str:
    """Which of the tests' lines failed."""
    frames = walk_tb(error.__traceback__)
    numbers = [line for frame, line in frames if frame.f_code.co_filename == TESTS]
    return f"Line {numbers[-1]} of the tests: " if numbers else ""


def check_outputs(wire: Wire, tests: Sequence[Mapping[str, Any]]) -> list[str]:
    failures = []
    for number, test in enumerate(tests):
        if not isinstance(test.get("output"), str):
            raise InvalidInput(f"test {number} has no output to compare with")
        found, _ = wire.ask("program", str(test.get("input", "")))
        if tidy(found) != tidy(test["output"]):
            failures.append(f"Test {number + 1} printed {str(found)[-200:]!r}.")
    return failures


def tidy(output: Any) -> list[str]:
    return [line.rstrip() for line in str(output).rstrip().splitlines()]
