"""What every promise offers: APIFuture, and the two futures of clients."""

import asyncio
from typing import Any

from registry import case
from tinker import types
from world import World, make_datum, make_prompt


def train(world: World) -> Any:
    return world.model.forward_backward([make_datum()], "cross_entropy")


def sample(world: World) -> Any:
    return world.sampler.sample(make_prompt(), 1, types.SamplingParams(max_tokens=2))


@case("APIFuture")
def result(world: World) -> None:
    assert world.perform(train(world), "result", timeout=60).loss_fn_outputs
    assert sample(world).result(timeout=60).sequences


@case("APIFuture")
def future(world: World) -> None:
    assert world.perform(train(world), "future").loss_fn_outputs


@case("APIFuture")
def coroutine(world: World) -> None:
    world.performed.add(("APIFuture", "coroutine"))

    async def wait() -> Any:
        return await asyncio.create_task(sample(world).coroutine())

    assert asyncio.run(wait()).sequences


@case("BackcompatTrainingClientFuture", "result", "future", "coroutine")
def training_client_future(world: World) -> None:
    use_future(world, world.start_model, "BackcompatTrainingClientFuture")


@case("BackcompatSamplingClientFuture", "result", "future", "coroutine")
def sampling_client_future(world: World) -> None:
    use_future(world, world.start_sampler, "BackcompatSamplingClientFuture")


def use_future(world: World, start: Any, owner: str) -> None:
    client = world.perform(start(), "result", timeout=60)
    assert type(world.perform(start(), "future")) is type(client)
    world.performed.add((owner, "coroutine"))

    async def wait() -> Any:
        return await asyncio.create_task(start().coroutine())

    assert type(asyncio.run(wait())) is type(client)
