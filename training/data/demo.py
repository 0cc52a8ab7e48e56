"""The demo dataset: function calls from the Berkeley Function Calling Leaderboard's package."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import orjson

from training.data.batches import split_held_out
from training.data.rows import Row
from training.data.validate import Written, write_rows
from training.errors import InvalidInput

QUESTIONS = "BFCL_v4_simple_python.json"
INSTRUCTION = (
    'Reply with one JSON object {"name": ..., "arguments": {...}} that calls this function:'
)

# 40 steps of 8 rows: from no valid call to nearly all in a few minutes on two cores.
DEMO_CONFIG: Mapping[str, Any] = {
    "rank": 16,
    "learning_rate": 1e-3,
    "schedule": "linear",
    "batch_size": 8,
    "steps": 40,
    "held_out_share": 0.25,
    "seed": 0,
    "evaluate_every": 20,
    "checkpoint_every": 20,
}
DEMO_GRADERS: Sequence[Mapping[str, Any]] = ({"name": "accepted_call"}, {"name": "valid_json"})


def find_bfcl() -> Path:
    """The data folder inside the bfcl-eval package, which need not be importable."""
    spec = find_spec("bfcl_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "data"
        if (path / QUESTIONS).is_file():
            return path
    raise InvalidInput(
        f"the package bfcl-eval with {QUESTIONS} is not installed: "
        "install it with `pip install --no-deps bfcl-eval`"
    )


def write_demo(dest: Path) -> Written:
    """Messages, and as `target` the accepted values of each argument, for `accepted_call`."""
    return write_rows(demo_rows(find_bfcl()), dest)


def demo_config(rows: Iterable[Row], *, num_prompts: int = 4) -> dict[str, Any]:
    """DEMO_CONFIG with questions that its run will hold out, asked while it learns."""
    _, held_out = split_held_out(
        rows, share=DEMO_CONFIG["held_out_share"], seed=DEMO_CONFIG["seed"]
    )
    prompts = [list(row.messages[:-1]) for row in held_out[:num_prompts]]
    return {**DEMO_CONFIG, "sampling": {"prompts": prompts, "every": 5, "max_tokens": 80}}


def demo_rows(folder: Path) -> Iterator[Row]:
    answers = {
        answer["id"]: answer["ground_truth"][0]
        for answer in read_objects(folder / "possible_answer" / QUESTIONS)
    }
    for number, entry in enumerate(read_objects(folder / QUESTIONS), start=1):
        yield make_row(number, entry, answers[entry["id"]])


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from (orjson.loads(line) for line in file if line.strip())


def make_row(number: int, entry: Mapping[str, Any], answer: Mapping[str, Any]) -> Row:
    question = entry["question"][0][-1]["content"]
    ((name, arguments),) = answer.items()
    accepted = {key: expand_all(values) for key, values in arguments.items()}
    call = {"name": name, "arguments": choose_arguments(accepted, question)}
    return Row(
        number=number,
        messages=[
            {"role": "system", "content": describe_function(entry["function"][0])},
            {"role": "user", "content": question},
            {"role": "assistant", "content": dump(call)},
        ],
        metadata={"id": entry["id"], "target": dump({"name": name, "arguments": accepted})},
    )


def describe_function(function: Mapping[str, Any]) -> str:
    """A signature and a line for each argument: a third of the tokens of its JSON schema."""
    parameters = function["parameters"]
    required = parameters.get("required", [])
    names = [
        f"{name}{'' if name in required else '?'}: {spec['type']}"
        for name, spec in parameters["properties"].items()
    ]
    lines = [f"- {name}: {spec['description']}" for name, spec in parameters["properties"].items()]
    head = f"{function['name']}({', '.join(names)}): {function['description']}"
    return "\n".join([INSTRUCTION, head, *lines])


def choose_arguments(accepted: Mapping[str, list[Any]], question: str) -> dict[str, Any]:
    """The first accepted value; one that may be absent only where the question names it."""
    chosen = {}
    for name, values in accepted.items():
        given = [value for value in values if value != ""]
        if "" in values:
            given = [value for value in given if str(value).lower() in question.lower()]
        if given:
            chosen[name] = given[0]
    return chosen


def expand_all(values: Sequence[Any]) -> list[Any]:
    return [plain for value in values for plain in expand(value)]


def expand(value: Any) -> list[Any]:
    """Inside an object each field lists its accepted values: every combination, written out."""
    if isinstance(value, dict):
        choices = product(*(expand_all(accepted) for accepted in value.values()))
        return [dict(zip(value, chosen, strict=True)) for chosen in choices]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [list(chosen) for chosen in product(*(expand(item) for item in value))]
    return [value]


def dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m training.data.demo DEST.jsonl\n")
        return 2
    try:
        written = write_demo(Path(arguments[0]))
    except (InvalidInput, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{written.num_rows} rows, sha256 {written.digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
