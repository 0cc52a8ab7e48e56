"""ServiceClient: the door of every program."""

from typing import Any

import tinker
from registry import case
from tinker.lib.retry_handler import RetryConfig
from training_cases import check_output, check_sampler
from world import ADAMW, MODEL, RANK, World, make_datum, resolve


def names(capabilities: Any) -> list[str | None]:
    return [model.model_name for model in capabilities.supported_models]


def check_model(model: Any) -> None:
    check_output(resolve(model).forward_backward([make_datum()], "cross_entropy").result())


@case("ServiceClient")
def holder(world: World) -> None:
    """In old SDKs a plain attribute: the session behind the client."""
    assert world.perform(world.service, "holder").get_session_id()


@case("ServiceClient", note="An address of the vendor's site, which the SDK makes by itself.")
def get_console_url(world: World) -> None:
    assert world.perform(world.service, "get_console_url").startswith("https://")


@case("ServiceClient")
def get_telemetry(world: World) -> None:
    world.perform(world.service, "get_telemetry")


@case("ServiceClient")
def get_server_capabilities(world: World) -> None:
    assert MODEL in names(world.perform(world.service, "get_server_capabilities"))


@case("ServiceClient")
def create_lora_training_client(world: World) -> None:
    made = world.perform(
        world.service,
        "create_lora_training_client",
        MODEL,
        rank=RANK,
        seed=7,
        train_mlp=True,
        train_attn=True,
        train_unembed=False,
        user_metadata={"made": "from nothing"},
        optimizer=ADAMW,
    )
    check_model(made)


@case("ServiceClient")
def create_training_client_from_state(world: World) -> None:
    made = world.perform(
        world.service,
        "create_training_client_from_state",
        world.saved,
        base_model=MODEL,
        user_metadata={"made": "from a checkpoint"},
        weights_access_token=world.key,
        optimizer=ADAMW,
    )
    check_model(made)


@case("ServiceClient")
def create_training_client_from_state_with_optimizer(world: World) -> None:
    made = world.perform(
        world.service,
        "create_training_client_from_state_with_optimizer",
        world.saved,
        base_model=MODEL,
        user_metadata={"made": "from a checkpoint"},
        weights_access_token=world.key,
    )
    check_model(made)


@case("ServiceClient")
def create_sampling_client(world: World) -> None:
    name, path = "create_sampling_client", world.save_sampler()
    options = {"retry_config": RetryConfig(), "record_stability_info": True}
    check_sampler(world.perform(world.service, name, model_path=path))
    check_sampler(world.perform(world.service, name, base_model=MODEL, **options))


@case("ServiceClient")
def create_rest_client(world: World) -> None:
    rest = world.perform(world.service, "create_rest_client")
    assert rest.list_training_runs().result().training_runs


@case("ServiceClient")
def copy_weights(world: World) -> None:
    options = {"ttl_seconds": 7200, "weights_access_token": world.key}
    copied = world.perform(world.service, "copy_weights", world.saved, **options)
    assert copied != world.saved
    assert resolve(world.rest.get_weights_info_by_tinker_path(copied)).lora_rank == RANK


@case("ServiceClient")
def create_custom_loss(world: World) -> None:
    """The server runs it where it says so, else the SDK: a step with it shows no difference."""
    ranks = {"logprobs": 1, "weights": 1}
    handle = world.perform(world.service, "create_custom_loss", weighted_squares, ranks)
    output = world.model.forward_backward_custom([make_datum()], handle).result()
    assert output.metrics["custom/squares:sum"] > 0


def weighted_squares(logprobs: Any, weights: Any) -> tuple[Any, dict[str, Any]]:
    loss = (logprobs * logprobs * weights).sum()
    return loss, {"custom/squares:sum": loss}


@case("LossHandle", "key", "input_names")
def loss_handle(world: World) -> None:
    assert world.perform(world.loss, "key")
    assert world.perform(world.loss, "input_names") == ("weights",)


@case("ServiceClient")
def close(world: World) -> None:
    """The session ends; what still asks for it is told so."""
    service = tinker.ServiceClient()
    model = resolve(service.create_lora_training_client(MODEL, rank=RANK))
    world.perform(service, "close", "success", detail="done")
    session = resolve(world.rest.get_session(model.model_id.split(":")[0]))
    assert session.training_run_ids == [model.model_id]
