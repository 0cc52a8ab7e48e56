"""RestClient and AdminClient: what there is, and who may see it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from registry import CASES, Case, case
from tinker import types
from training_cases import bind
from world import MODEL, RANK, Fresh, World, make_datum

SCOPE = {"access_scope": "accessible"}
PAGE = {"limit": 100, "offset": 0, **SCOPE}
Play = Callable[[World, Any], object]


def admin(play: Play) -> Play:
    """AdminClient's calls, which RestClient still has too."""
    CASES.append(Case("RestClient", play.__name__, bind(play, lambda world: world.rest)))
    CASES.append(Case("AdminClient", play.__name__, bind(play, lambda world: world.admin)))
    return play


def split(path: str) -> tuple[str, str]:
    """The run and the checkpoint's id: `weights/name`."""
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    return run_id, f"{kind}/{name}"


def find(world: World, path: str) -> Any:
    run_id, checkpoint_id = split(path)
    listed = world.rest.list_checkpoints(run_id).result().checkpoints
    return next((each for each in listed if each.checkpoint_id == checkpoint_id), None)


@case("RestClient")
def get_server_capabilities(world: World) -> None:
    models = world.perform(world.rest, "get_server_capabilities").supported_models
    assert MODEL in [model.model_name for model in models]


@case("RestClient")
def list_training_runs(world: World) -> None:
    runs = world.perform(
        world.rest, "list_training_runs", **PAGE, project_id=world.project
    ).training_runs
    assert world.model.model_id in [run.training_run_id for run in runs]


@case("RestClient")
def get_training_run(world: World) -> None:
    run = world.perform(world.rest, "get_training_run", world.model.model_id, **SCOPE)
    assert (run.base_model, run.lora_rank) == (MODEL, RANK)


@case("RestClient")
def get_training_run_by_tinker_path(world: World) -> None:
    run = world.perform(world.rest, "get_training_run_by_tinker_path", world.saved, **SCOPE)
    assert run.training_run_id == world.model.model_id


@case("RestClient")
def get_weights_info_by_tinker_path(world: World) -> None:
    info = world.perform(world.rest, "get_weights_info_by_tinker_path", world.saved)
    assert (info.base_model, info.lora_rank) == (MODEL, RANK)


@case("RestClient")
def list_checkpoints(world: World) -> None:
    run_id, checkpoint_id = split(world.saved)
    listed = world.perform(world.rest, "list_checkpoints", run_id).checkpoints
    assert checkpoint_id in [each.checkpoint_id for each in listed]


@case("RestClient")
def list_user_checkpoints(world: World) -> None:
    path = world.save()
    listed = world.perform(world.rest, "list_user_checkpoints", limit=10, offset=0).checkpoints
    assert listed[0].tinker_path == path


@case("RestClient")
def delete_checkpoint(world: World) -> None:
    run_id = world.model.model_id
    world.perform(world.rest, "delete_checkpoint", run_id, Fresh(lambda: split(world.save())[1]))


@case("RestClient")
def delete_checkpoint_from_tinker_path(world: World) -> None:
    path = world.save()
    world.perform(world.rest, "delete_checkpoint_from_tinker_path", Fresh(world.save))
    world.rest.delete_checkpoint_from_tinker_path(path).result()
    assert find(world, path) is None


@case("RestClient")
def publish_checkpoint_from_tinker_path(world: World) -> None:
    path = world.save()
    world.perform(world.rest, "publish_checkpoint_from_tinker_path", path)
    assert find(world, path).public


@case("RestClient")
def unpublish_checkpoint_from_tinker_path(world: World) -> None:
    path = world.save()
    world.rest.publish_checkpoint_from_tinker_path(path).result()
    world.perform(world.rest, "unpublish_checkpoint_from_tinker_path", path)
    assert not find(world, path).public


@case("RestClient")
def set_checkpoint_ttl_from_tinker_path(world: World) -> None:
    path = world.save()
    world.perform(world.rest, "set_checkpoint_ttl_from_tinker_path", path, 7200)
    assert find(world, path).expires_at is not None


@case("RestClient")
def get_external_weights_urls(world: World) -> None:
    answer = world.perform(world.rest, "get_external_weights_urls", world.save_external())
    assert "adapter_config.json" in answer.urls
    assert answer.expires > datetime.now(UTC)


@case("RestClient")
def get_checkpoint_archive_url(world: World) -> None:
    arguments = split(world.save_sampler())
    assert world.perform(world.rest, "get_checkpoint_archive_url", *arguments).url


@case("RestClient")
def get_checkpoint_archive_url_from_tinker_path(world: World) -> None:
    path = world.save_sampler()
    assert world.perform(world.rest, "get_checkpoint_archive_url_from_tinker_path", path).url


@case("RestClient")
def copy_weights(world: World) -> None:
    options = {"ttl_seconds": 7200, "weights_access_token": world.key}
    copied = world.perform(world.rest, "copy_weights", world.saved, world.project, **options)
    assert copied != world.saved


@case("RestClient")
def list_sessions(world: World) -> None:
    assert world.session_id in world.perform(world.rest, "list_sessions", **PAGE).sessions


@case("RestClient")
def get_session(world: World) -> None:
    run_id = world.model.model_id
    session = world.perform(world.rest, "get_session", run_id.split(":")[0], **SCOPE)
    assert run_id in session.training_run_ids


@case("RestClient")
def search_sessions(world: World) -> None:
    request = types.SessionSearchRequest(limit=50)
    found = world.perform(world.rest, "search_sessions", request).sessions
    assert world.session_id in [each.session_id for each in found]


@case("RestClient")
def assign_session_project(world: World) -> None:
    """To the project that the key belongs to: another one is refused."""
    world.perform(world.rest, "assign_session_project", world.session_id, world.project)


@case("RestClient")
def export_session_trace(world: World) -> None:
    assert world.perform(world.rest, "export_session_trace", world.session_id).startswith("http")


@case("RestClient")
def whoami(world: World) -> None:
    assert world.perform(world.rest, "whoami").user_urn


@case("RestClient")
def get_sampler(world: World) -> None:
    sampler_id = world.sampler._sampling_session_id
    assert world.perform(world.rest, "get_sampler", sampler_id).base_model == MODEL


@admin
def get_telemetry(world: World, client: Any) -> None:
    world.perform(client, "get_telemetry")


@admin
def get_audit_log(world: World, client: Any) -> None:
    path = world.save()
    world.rest.delete_checkpoint_from_tinker_path(path).result()
    today = datetime.now(UTC).date()
    assert world.perform(client, "get_audit_log", event_type="all", day=today).entries


@admin
def get_billing_usage(world: World, client: Any) -> None:
    world.model.forward_backward([make_datum()], "cross_entropy").result()
    assert world.perform(client, "get_billing_usage", *find_days()).data


def find_days() -> tuple[datetime, datetime]:
    """Today: usage is asked for by whole hours."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=1), today + timedelta(days=1)


@admin
def get_current_checkpoint_storage_usage(world: World, client: Any) -> None:
    world.save()
    name = "get_current_checkpoint_storage_usage"
    assert world.perform(client, name, project_id=world.project).data
