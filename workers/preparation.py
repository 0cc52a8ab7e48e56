"""What must stand before the processes start: state folder, database, static files, first user."""

import fcntl
import json
import os
import shutil
import socket
import sys
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError

from webapp.accounts.models import Actor, ApiKey, Project, Role, User
from webapp.accounts.services import create_key, create_project, find_actor_of_key

FREE_BYTES = 1 << 30
KEY_NAME = "make run"
DEFAULT_DEMO = "smollm2"


class CannotStart(Exception):  # noqa: N818 - reads as the sentence it begins
    """Why this installation, or a server of it, does not start, in a sentence."""


def lock_state(home: Path) -> TextIOWrapper:
    """One installation a state folder; the lock ends with the process that holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("a+")
    except OSError as error:
        raise CannotStart(f"The state folder {home} cannot be written: {error}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStart(
            f"Another Hone is running on {home}. Stop it, or choose a folder with HONE_HOME=."
        ) from None
    return lock


def check_state_version(home: Path) -> None:
    file = home / "state.json"
    if not file.exists():
        file.write_text(json.dumps({"version": settings.STATE_VERSION}))
        return
    version = json.loads(file.read_text())["version"]
    if version > settings.STATE_VERSION:
        raise CannotStart(
            f"The state in {home} was written by a newer Hone (state version {version}, this one"
            f" reads up to {settings.STATE_VERSION}). Update Hone, or choose another HONE_HOME=."
        )


def is_demo_prepared(home: Path, demo: str) -> bool:
    """Once is enough: what its owner removed later stays removed, and starts are seconds faster."""
    return demo in json.loads((home / "state.json").read_text()).get("demos", [])


def note_demo(home: Path, demo: str) -> None:
    file = home / "state.json"
    state = json.loads(file.read_text())
    state["demos"] = [*state.get("demos", []), demo]
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state))
    temporary.replace(file)


def check_disk(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES:
        raise CannotStart(
            f"The disk of {home} has {free // 2**20} MiB free; Hone needs at least"
            f" {FREE_BYTES // 2**20} MiB. Free some space, or choose another disk with HONE_HOME=."
        )


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CannotStart(
                f"Port {port} is taken ({error.strerror}). Choose another: make run PORT=8001."
            ) from None


def check_vllm() -> None:
    """It has an environment of its own, which only those who want it install."""
    python: Path = settings.VLLM_PYTHON
    if not python.exists():
        raise CannotStart(
            f"vLLM is not installed in {python.parents[1]}: `make run SERVING=vllm` does that."
        )


def migrate() -> None:
    try:
        call_command("migrate", verbosity=0, interactive=False)
    except OperationalError as error:
        raise CannotStart(f"The database cannot be prepared: {error}.") from error


def collect_static() -> None:
    """Only when the sources changed: compressing the chart library takes seconds."""
    stamp = settings.STATIC_ROOT / ".stamp"
    current = _digest_sources()
    if stamp.exists() and stamp.read_text() == current:
        return
    call_command("collectstatic", verbosity=0, interactive=False, clear=True)
    stamp.write_text(current)


def _digest_sources() -> str:
    digest = sha256((settings.ROOT / "requirements.txt").read_bytes())
    for file in sorted((settings.ROOT / "static").rglob("*")):
        if file.is_file():
            digest.update(f"{file}{file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def prepare_owner() -> Actor:
    """The first user and project; later starts find them again."""
    user, is_new = User.objects.get_or_create(
        username="owner", defaults={"is_staff": True, "is_superuser": True}
    )
    if is_new:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    project = Project.objects.filter(memberships__user=user).first()
    if project is None:
        project = create_project(user=user, name="Default")
    return Actor(user=user, project=project, role=Role.OWNER)


def prepare_key(actor: Actor, connection_file: Path) -> str:
    """The key of the last start where it still opens the door, else a new one in its place."""
    if connection_file.exists():
        secret = str(json.loads(connection_file.read_text()).get("api_key", ""))
        if find_actor_of_key(secret) is not None:
            return secret
    ApiKey.objects.visible_to(actor).filter(name=KEY_NAME).delete()
    _, secret = create_key(actor=actor, name=KEY_NAME)
    return secret


def write_connection(file: Path, *, url: str, api_key: str) -> None:
    connection = {"url": url, "api_key": api_key, "pid": os.getpid()}
    write_private(file, json.dumps(connection))


def write_private(file: Path, text: str) -> None:
    """Readable by its owner alone: it holds a key."""
    temporary = file.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    temporary.replace(file)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
