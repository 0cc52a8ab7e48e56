"""`python -m bench [NAME ...]`: measure, print the ratios, and keep the rows in bench.json.

`python -m bench table` prints the rows that are kept as a table for a page, and
`python -m bench profile` where the time of a step goes.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import growth, hotload, lineage, load, memory, profile, serving, sft, stack, tenants
from bench.contest import ROOT
from bench.rows import Row, describe_rows, tabulate_rows

BENCHES: Mapping[str, Callable[[], list[Row]]] = {
    "sft": sft.measure,
    "full": sft.measure_full,
    "tenants": tenants.measure,
    "memory": memory.measure,
    "stack": stack.measure,
    "growth": growth.measure,
    "lineage": lineage.measure,
    "load": load.measure,
    "serving": serving.measure,
    "hotload": hotload.measure,
}


def main(names: Sequence[str]) -> int:
    if list(names) == ["table"]:
        print(*tabulate_rows(read_rows()), sep="\n")
        return 0
    if list(names) == ["profile"]:
        profile.tell()
        return 0
    unknown = set(names) - set(BENCHES)
    if unknown:
        print(f"There is no bench {', '.join(sorted(unknown))}: say {', '.join(BENCHES)}.")
        return 2
    for name in names or BENCHES:
        print(f"Measuring {name} ...", flush=True)
        rows = BENCHES[name]()
        store_rows(name, rows)
        print(*describe_rows(rows), sep="\n", flush=True)
    return 0


def store_rows(name: str, rows: list[Row]) -> None:
    """Rows of this bench replace those of its last run; a bench's rows begin with its name."""
    kept = [row for row in read_rows() if row["name"].split()[0] != name]
    file = find_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([*kept, *rows], indent=2) + "\n")


def read_rows() -> list[Row]:
    """None where nothing was measured yet."""
    file = find_file()
    rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    return rows


def find_file() -> Path:
    return Path(os.environ.get("HONE_HOME", ROOT / ".hone")).resolve() / "bench.json"


sys.exit(main(sys.argv[1:]))
