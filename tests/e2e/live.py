"""A whole installation with the tiny model, and the SDK's programs beside it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SDK_PYTHON = ROOT / ".venv-sdk" / "bin" / "python"
TORCH_PYTHON = ROOT / ".venv-cookbook" / "bin" / "python"  # the same SDK, beside torch
SCRIPTS = Path(__file__).parent / "scripts"
ENDED = SCRIPTS / "ended.py"
START_SECONDS = 180
SCRIPT_SECONDS = 300
STOP_SECONDS = 120
STOP_RUNS = """
from webapp.accounts.models import Actor
from webapp.runs.models import Run
from webapp.runs.steering import request_stop
for run in Run.objects.exclude(recipe='').filter(status__in=('queued', 'running', 'paused')):
    request_stop(actor=Actor(user=run.created_by, project=run.project, role='owner'), run=run)
"""


class Live:
    """What `manage.py up` has started. `url` and `api_key` are what a program needs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "DJANGO_SETTINGS_MODULE": "webapp.settings"}
        places = {"HONE_HOME": str(home), "PORT": str(self.port), "HONE_DEMO": "tiny"}
        inherited = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        self.environment = inherited | quiet | places
        self.log = home / "up.log"
        self.url = self.api_key = ""
        self.programs: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        connection = self.home / "connection.json"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while self.read_pid(connection) != self.process.pid:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        told = json.loads(connection.read_text())
        self.url, self.api_key = told["url"], told["api_key"]

    def read_pid(self, connection: Path) -> int:
        """Whose connection.json it is: a start on an old folder finds the last one's."""
        return int(json.loads(connection.read_text())["pid"]) if connection.exists() else 0

    def stop(self) -> None:
        self.end_programs()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=STOP_SECONDS)

    def list_logs(self) -> list[Path]:
        return [self.log, *sorted((self.home / "logs").glob("*.log"))]

    @property
    def client(self) -> dict[str, str]:
        """The environment of a program of a user."""
        given = {"TINKER_BASE_URL": self.url, "TINKER_API_KEY": self.api_key}
        return self.environment | {"HF_HUB_OFFLINE": "1"} | given

    def begin(
        self, script: str, *arguments: str, python: Path = SDK_PYTHON, **environment: str
    ) -> subprocess.Popen[str]:
        """A program of a user: the unmodified SDK in its own environment, a URL and a key."""
        program = subprocess.Popen(
            [str(python), str(ENDED), str(SCRIPTS / script), *arguments],
            env=self.client | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.programs.append(program)
        return program

    def quieten(self) -> None:
        """What a test that failed has left would train on beside the next ones."""
        self.end_programs()
        if self.process.poll() is None:
            with suppress(subprocess.SubprocessError):
                self.manage(STOP_RUNS)

    def end_programs(self) -> None:
        while self.programs:
            program = self.programs.pop()
            program.kill()
            with suppress(subprocess.TimeoutExpired):  # a child of its may hold its pipes
                program.communicate(timeout=30)

    def run(
        self,
        script: str,
        *arguments: str,
        given: str = "",
        python: Path = SDK_PYTHON,
        **environment: str,
    ) -> Any:
        return read_report(self.begin(script, *arguments, python=python, **environment), given)

    def type_tinker(self, *arguments: str, fails: bool = False) -> str:
        """A command of the SDK's own command line: what it prints, or what it complains of."""
        finished = subprocess.run(
            [str(SDK_PYTHON), str(ENDED), str(SDK_PYTHON.with_name("tinker")), *arguments],
            env=self.client | {"COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=SCRIPT_SECONDS,
            check=False,
        )
        said = f"{finished.returncode}: {finished.stdout}{finished.stderr}"
        assert finished.returncode in ((1, 2) if fails else (0,)), said
        return finished.stderr if fails else finished.stdout

    def manage(self, code: str) -> str:
        """Lines of Python inside the installation: what an administrator's shell would do."""
        finished = subprocess.run(
            [sys.executable, "manage.py", "shell", "-v", "0", "-c", code],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=SCRIPT_SECONDS,
        )
        return finished.stdout.strip()


def read_report(program: subprocess.Popen[str], given: str = "") -> Any:
    output, errors = program.communicate(given, timeout=SCRIPT_SECONDS)
    assert program.returncode == 0, f"{program.returncode}: {errors}"
    return json.loads(output.splitlines()[-1])
