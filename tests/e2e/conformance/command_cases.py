"""Every command of the `tinker` program, run as from a shell."""

import tempfile
from pathlib import Path

from click.testing import CliRunner
from registry import case
from rest_cases import find_days
from surface import COMMANDS
from tinker.cli.__main__ import main_cli
from world import MODEL, World


def run(world: World, command: str, *arguments: str, given: str = "", **environment: str) -> str:
    """What it printed. Its own kind of error, and any other, is raised."""
    world.performed.add((COMMANDS, command))
    line = [*command.split(), *arguments]
    result = CliRunner(env=dict(environment)).invoke(main_cli, line, input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.output)


@case(COMMANDS)
def version(world: World) -> None:
    assert "tinker" in run(world, "version")


@case(COMMANDS, "model list")
def model_list(world: World) -> None:
    assert MODEL in run(world, "model list")


@case(COMMANDS, "run list")
def run_list(world: World) -> None:
    assert world.model.model_id
    assert MODEL in run(world, "run list", "--columns", "id,model")


@case(COMMANDS, "run info")
def run_info(world: World) -> None:
    assert MODEL in run(world, "run info", world.model.model_id)


@case(COMMANDS, "checkpoint list")
def checkpoint_list(world: World) -> None:
    assert world.saved
    assert "weights" in run(world, "checkpoint list", "--run-id", world.model.model_id)
    assert "weights" in run(world, "checkpoint list")


@case(COMMANDS, "checkpoint info")
def checkpoint_info(world: World) -> None:
    assert "weights" in run(world, "checkpoint info", world.saved)


@case(COMMANDS, "checkpoint publish")
def checkpoint_publish(world: World) -> None:
    run(world, "checkpoint publish", world.save())


@case(COMMANDS, "checkpoint unpublish")
def checkpoint_unpublish(world: World) -> None:
    path = world.save()
    run(world, "checkpoint publish", path)
    run(world, "checkpoint unpublish", path)


@case(COMMANDS, "checkpoint set-ttl")
def checkpoint_set_ttl(world: World) -> None:
    path = world.save()
    run(world, "checkpoint set-ttl", path, "--ttl", "7200")
    run(world, "checkpoint set-ttl", path, "--remove")


@case(COMMANDS, "checkpoint delete")
def checkpoint_delete(world: World) -> None:
    run(world, "checkpoint delete", "--yes", world.save(), world.save())


@case(COMMANDS, "checkpoint download")
def checkpoint_download(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(world, "checkpoint download", find_downloadable(world), "--output", folder)
        assert list(Path(folder).rglob("adapter_config.json"))


def find_downloadable(world: World) -> str:
    """Old SDKs download what was saved for the sampler, new ones refuse exactly that."""
    return str(world.saved if has_external(world) else world.save_sampler())


def has_external(world: World) -> bool:
    return hasattr(world.model, "save_weights_external")


HUB = (
    "The upload needs an account at the hub, which the suite has not. "
    "Of this server the command asks what checkpoint download asks."
)


@case(COMMANDS, "checkpoint push-hf", note=HUB)
def checkpoint_push_hf(world: World) -> None:
    run(world, "checkpoint push-hf", find_downloadable(world))


@case(COMMANDS, "session export-trace")
def session_export_trace(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trace.json"
        run(world, "session export-trace", world.session_id, "--output", str(target))
        assert target.stat().st_size > 0


@case(COMMANDS, "billing usage")
def billing_usage(world: World) -> None:
    world.train()
    run(world, "billing usage", *(each.isoformat() for each in find_days()))


@case(COMMANDS, "billing checkpoint-storage")
def billing_checkpoint_storage(world: World) -> None:
    assert world.saved
    run(world, "billing checkpoint-storage")


@case(COMMANDS, "auth login")
def auth_login(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log_in(world, folder)


@case(COMMANDS, "auth logout")
def auth_logout(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log_in(world, folder)
        assert "Removed" in run(world, "auth logout", HOME=folder)


def log_in(world: World, home: str) -> None:
    key = f"{world.key}\n"
    assert "Logged in" in run(world, "auth login", given=key, HOME=home)


@case(COMMANDS, "auth status")
def auth_status(world: World) -> None:
    assert "accessible: yes" in run(world, "auth status")


@case(COMMANDS, "auth whoami")
def auth_whoami(world: World) -> None:
    run(world, "auth whoami")
