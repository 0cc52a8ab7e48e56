"""TrainingClient, and the future of one, which old programs use as the client itself."""

from collections.abc import Callable
from typing import Any

from registry import CASES, Case
from tinker import types
from tinker.lib.retry_handler import RetryConfig
from world import ADAM, Fresh, World, make_datum, make_prompt, make_scored_datum, resolve

CLIP = {"clip_low_threshold": 0.9}
# Somebody's public age key: what is encrypted for it is not read again here.
RECIPIENT = "age1079gmt5ps49ewsxvluzzwdmqjecvw35gkhc3auv4vvv7plpxeyeq929rcg"
Subject = Callable[[World], Any]
Play = Callable[[World, Any], object]
SUBJECTS: dict[str, Subject] = {
    "TrainingClient": lambda world: world.model,
    "BackcompatTrainingClientFuture": lambda world: world.model_future,
}


def training(play: Play) -> Play:
    for group, subject in SUBJECTS.items():
        CASES.append(Case(group, play.__name__, bind(play, subject)))
    return play


def bind(play: Play, subject: Subject) -> Callable[[World], object]:
    return lambda world: play(world, subject(world))


def check_output(output: Any, num_datums: int = 1) -> None:
    assert len(output.loss_fn_outputs) == num_datums
    assert len(output.loss_fn_outputs[0]["logprobs"].tolist()) == 12
    assert output.metrics["loss:sum"] != 0


@training
def forward(world: World, model: Any) -> None:
    check_output(world.perform(model, "forward", [make_datum()], "cross_entropy"))
    check_output(world.perform(model, "forward", [make_scored_datum()], "ppo", loss_fn_config=CLIP))


@training
def forward_backward(world: World, model: Any) -> None:
    data = [make_datum(), make_datum()]
    check_output(world.perform(model, "forward_backward", data, "cross_entropy"), 2)
    scored = [make_scored_datum()]
    check_output(world.perform(model, "forward_backward", scored, "ppo", loss_fn_config=CLIP))


@training
def forward_backward_custom(world: World, model: Any) -> None:
    def loss(data: list[Any], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        value = sum((each * each).sum() for each in logprobs)
        return value, {"squares": float(value)}

    options = {"loss_type_input": "logprobs"}
    output = world.perform(model, "forward_backward_custom", [make_datum()], loss, **options)
    check_output(output)
    assert output.metrics["squares"] > 0


@training
def optim_step(world: World, model: Any) -> None:
    updates = Fresh(lambda: find_gradient(resolve(model)))
    assert world.perform(model, "optim_step", updates).metrics is not None
    find_gradient(resolve(model))
    assert world.perform(model, "optim_step", adam_params=ADAM).metrics is not None


def find_gradient(client: Any) -> types.AdamParams:
    client.forward_backward([make_datum()], "cross_entropy").result()
    return ADAM


@training
def save_state(world: World, model: Any) -> None:
    options = {"ttl_seconds": 7200, "overwrite": True, "user_metadata": {"step": "1"}}
    saved = world.perform(model, "save_state", Fresh(world.name), **options)
    assert "/weights/" in saved.path


@training
def load_state(world: World, model: Any) -> None:
    world.perform(model, "load_state", world.saved, weights_access_token=world.key)


@training
def load_state_with_optimizer(world: World, model: Any) -> None:
    world.perform(model, "load_state_with_optimizer", world.saved, weights_access_token=world.key)


@training
def save_weights_for_sampler(world: World, model: Any) -> None:
    options = {"ttl_seconds": 7200, "user_metadata": {"step": "1"}}
    saved = world.perform(model, "save_weights_for_sampler", Fresh(world.name), **options)
    assert "/sampler_weights/" in saved.path


@training
def save_weights_external(world: World, model: Any) -> None:
    options = {"ttl_seconds": 7200, "age_encryption_recipients": [RECIPIENT]}
    saved = world.perform(model, "save_weights_external", Fresh(world.name), **options)
    assert "/external_weights/" in saved.path


@training
def save_weights_and_get_sampling_client(world: World, model: Any) -> None:
    name = "save_weights_and_get_sampling_client"
    for options in (
        {},
        {"name": Fresh(world.name), "retry_config": RetryConfig()},
        {"kind": "inflight", "record_stability_info": True},
    ):
        check_sampler(world.perform(model, name, **options))


@training
def create_sampling_client(world: World, model: Any) -> None:
    options = {"retry_config": RetryConfig(), "record_stability_info": True}
    path = world.save_sampler()
    check_sampler(world.perform(model, "create_sampling_client", path, **options))


def check_sampler(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=2)
    (sequence,) = sampler.sample(make_prompt(), 1, params).result().sequences
    assert len(sequence.tokens) == len(sequence.logprobs)


@training
def get_info(world: World, model: Any) -> None:
    info = world.perform(model, "get_info")
    assert (info.model_data.model_name, info.lora_rank) == ("tiny-chatml-1m", 8)


@training
def get_tokenizer(world: World, model: Any) -> None:
    assert world.perform(model, "get_tokenizer").encode("Hello")


@training
def get_console_url(world: World, model: Any) -> None:
    """An address of the vendor's site, made on the client: no server can change it."""
    assert world.perform(model, "get_console_url").startswith("https://")


@training
def get_telemetry(world: World, model: Any) -> None:
    world.perform(model, "get_telemetry")
