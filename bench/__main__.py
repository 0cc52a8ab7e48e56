"""`python -m bench [NAME ...]`: measure, print the ratios, and keep the rows in bench.json."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import load, sft, stack
from bench.contest import ROOT

Rows = list[dict[str, Any]]

BENCHES: Mapping[str, Callable[[], Rows]] = {
    "sft": sft.measure,
    "stack": stack.measure,
    "load": load.measure,
}


def main(names: Sequence[str]) -> int:
    unknown = set(names) - set(BENCHES)
    if unknown:
        print(f"There is no bench {', '.join(sorted(unknown))}: say {', '.join(BENCHES)}.")
        return 2
    for name in names or BENCHES:
        print(f"Measuring {name} ...", flush=True)
        rows = BENCHES[name]()
        store_rows(name, rows)
        print_rows(rows)
    return 0


def store_rows(name: str, rows: Rows) -> None:
    """Rows of this bench replace those of its last run; a bench's rows begin with its name."""
    file = Path(os.environ.get("HONE_HOME", ROOT / ".hone")).resolve() / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    before: Rows = json.loads(file.read_text()) if file.exists() else []
    kept = [row for row in before if row["name"].split()[0] != name]
    file.write_text(json.dumps([*kept, *rows], indent=2) + "\n")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'ratio':>7} {'target':>7} {'ours':>9} {'theirs':>9}  unit")
    for row in rows:
        mark = "" if row["met"] else "   target missed"
        numbers = (
            f"{row['ratio']:7.2f} {row['target']:7.2f} {row['ours']:9.1f} {row['theirs']:9.1f}"
        )
        print(f"{numbers}  {row['unit']}  {row['name']}{mark}")


sys.exit(main(sys.argv[1:]))
