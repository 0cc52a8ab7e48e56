"""The conformance suite in the SDKs' own environments, and the reports that Hone ships.

`make conformance` runs this file: it renews the reports.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.live import ROOT, TORCH_PYTHON, Live
from webapp.tinker.conformance import COMMITTED

PROGRAMS = Path(__file__).parent / "conformance"
# Where the tiny model's name is a folder: a tokenizer is found there, and no hub is asked.
ASSETS = ROOT / "tests" / "assets"
SUITE_SECONDS = 900
OLDEST_PYTHON = ROOT / ".venv-sdk-oldest" / "bin" / "python"
ENVIRONMENTS = {"oldest": OLDEST_PYTHON, "newest": TORCH_PYTHON}
Report = dict[str, Any]


def run_suite(live: Live, environment: str) -> Report:
    me = httpx.get(f"{live.url}/rest/me", headers={"X-API-Key": live.api_key}, timeout=60).json()
    with tempfile.TemporaryDirectory() as home:
        told = {"TINKER_BASE_URL": live.url, "TINKER_API_KEY": live.api_key}
        user = {"TINKER_PROJECT_ID": me["project"], "HOME": home, "HF_HUB_OFFLINE": "1"}
        return run_program(ENVIRONMENTS[environment], "suite.py", live.environment | told | user)


def run_program(python: Path, program: str, environment: dict[str, str]) -> Report:
    finished = subprocess.run(
        [str(python), str(PROGRAMS / program)],
        cwd=ASSETS,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    report: Report = json.loads(finished.stdout.splitlines()[-1])
    return report


def find_committed(version: str) -> Path:
    return COMMITTED / f"{version}.json"


def find_differences(found: Report, committed: Report) -> list[str]:
    """In anything but the times."""
    old, new = (
        {name_call(call): tell(call) for call in each["calls"]} for each in (committed, found)
    )
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]


def name_call(call: Report) -> str:
    return f"{call['group']}.{call['call']}"


def tell(call: Report) -> str:
    return " ".join([call["status"], call["sentence"], call["note"]]).strip()


def write_report(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "report.part"
    draft.write_text(write_lines(report))
    draft.replace(folder / f"{report['sdk_version']}.json")


def write_lines(report: Report) -> str:
    """A line a call, so that a change reads as one."""
    about = json.dumps(report | {"calls": "CALLS"}, indent=1)
    calls = ",\n".join(f"  {json.dumps(call)}" for call in report["calls"])
    return about.replace('"CALLS"', f"[\n{calls}\n ]") + "\n"


def renew() -> None:
    for old in COMMITTED.glob("*.json"):
        old.unlink()
    with tempfile.TemporaryDirectory() as home:
        live = Live(Path(home))
        live.start()
        for environment in ENVIRONMENTS:
            write_report(run_suite(live, environment), COMMITTED)
        live.stop()


if __name__ == "__main__":
    renew()
    sys.stdout.write(f"Renewed {COMMITTED.relative_to(ROOT)}.\n")
