"""Starts stock recipes against a live installation, and reads what they left on both sides."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.cookbook.hub import NAMES, make_hub
from tests.e2e.live import ROOT, Live

PYTHON = ROOT / ".venv-cookbook" / "bin" / "python"
SCRIPTS = ROOT / "tests" / "e2e" / "scripts" / "cookbook"
ADD_MODEL = """
from webapp.fleet.services import add_base_model
add_base_model(path={path!r}, names={names!r})
"""
WAIT_SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What a recipe wrote, and its run as the server tells it."""

    folder: Path
    metrics: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    run: dict[str, Any]
    series: dict[str, list[Any]]

    @property
    def state_path(self) -> str:
        return str(self.checkpoints[-1]["state_path"])

    @property
    def sampler_path(self) -> str:
        return str(self.checkpoints[-1]["sampler_path"])

    def read_curve(self, name: str) -> list[float]:
        """A metric of each step that has it."""
        return [row[name] for row in self.metrics if name in row]


class Cookbook:
    """One process that has the imports, in a folder that stands for the hub."""

    def __init__(self, live: Live, api: httpx.Client, folder: Path) -> None:
        self.live = live
        self.api = api
        self.folder = folder
        self.hub = folder / "hub"
        self.running = 0  # the process of the recipe that was begun last
        model = make_hub(self.hub)
        live.manage(ADD_MODEL.format(path=str(model), names=NAMES))
        self.process = subprocess.Popen(
            [str(PYTHON), str(SCRIPTS / "recipes.py")],
            cwd=self.hub,
            env=live.environment | self.get_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def get_environment(self) -> dict[str, str]:
        return {
            "TINKER_BASE_URL": self.live.url,
            "TINKER_API_KEY": self.live.api_key,
            "TINKER_COOKBOOK_RUNS_DIR": str(self.folder / "runs"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(self.folder / "huggingface"),
            "WANDB_MODE": "disabled",
        }

    def train(self, target: str, *flags: str) -> Outcome:
        """A recipe or a script that takes `log_path`."""
        return self.train_in(self.make_folder(), target, *flags)

    def train_in(self, folder: Path, target: str, *flags: str) -> Outcome:
        self.run(target, f"log_path={folder}", *flags)
        return self.read_outcome(folder)

    def make_folder(self) -> Path:
        """A name for one: recipes want to make it themselves."""
        return self.folder / "runs" / f"{time.monotonic_ns()}"

    def run(self, target: str, *flags: str) -> str:
        """What it printed. A module's name, or a script's."""
        log, _ = self.begin(target, *flags)
        status = self.wait()
        told = log.read_text()
        assert status == 0, f"{target} {' '.join(flags)} ended with {status}:\n{told}"
        return told

    def begin(self, target: str, *flags: str) -> tuple[Path, int]:
        """Its log and its process. One at a time: `wait` sees its end."""
        self.end_last()
        log = self.make_folder().with_suffix(".log")
        log.parent.mkdir(exist_ok=True)
        log.touch()
        place = str(SCRIPTS / target) if target.endswith(".py") else target
        order = {"target": place, "flags": flags, "log": str(log)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.running = self._read_number()
        return log, self.running

    def end_last(self) -> None:
        """Where its test did not wait for it: its status would be taken for the next one's."""
        if self.running:
            os.kill(self.running, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        status = self._read_number()
        self.running = 0
        return status

    def kill_when(self, text: str, log: Path, pid: int) -> None:
        """As soon as its log has the text."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in (told := log.read_text()):
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def _read_number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def read_outcome(self, folder: Path) -> Outcome:
        checkpoints = read_lines(folder / "checkpoints.jsonl")
        run = self.find_run(checkpoints[-1]["state_path"])
        return Outcome(
            folder=folder,
            metrics=read_lines(folder / "metrics.jsonl"),
            checkpoints=checkpoints,
            run=run,
            series=self.api.get(f"/rest/runs/{run['id']}/metrics").json()["series"],
        )

    def find_run(self, tinker_path: str) -> dict[str, Any]:
        """Of a checkpoint, as the dashboard's own API shows it."""
        model_id = tinker_path.removeprefix("tinker://").split("/")[0]
        runs = self.api.get("/rest/runs").json()["results"]
        found: dict[str, Any] = next(run for run in runs if run["model_id"] == model_id)
        return found

    def list_checkpoints(self, outcome: Outcome) -> set[str]:
        """As the Tinker API lists them: weights/final and so on."""
        answer = self.api.get(f"/api/v1/training_runs/{outcome.run['model_id']}/checkpoints")
        return {row["checkpoint_id"] for row in answer.json()["checkpoints"]}

    def stop(self) -> None:
        self.end_last()
        self.process.communicate(timeout=60)


def check_run(outcome: Outcome, recipe: str, steps: int) -> None:
    """What holds of every recipe: the server knows its name, its steps and its last weights."""
    run = outcome.run
    assert (run["origin"], run["config"]["recipe_name"]) == ("tinker", recipe)
    assert run["status"] in ("done", "running")  # some recipes never say that they end
    assert (run["step"], len(outcome.series["learning_rate"])) == (steps, steps)
    last = outcome.checkpoints[-1]
    assert last["name"] == "final"
    for path in (last["state_path"], last["sampler_path"]):
        assert path.startswith(f"tinker://{run['model_id']}/")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
