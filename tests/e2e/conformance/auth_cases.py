"""tinker.auth: whether a program may come in."""

import inspect
from typing import Any

import tinker
from registry import case
from surface import AUTH
from world import World


def ask(world: World, name: str) -> Any:
    function = getattr(tinker.auth, name)
    assert inspect.isfunction(function)
    world.performed.add((AUTH, name))
    return function()


@case(AUTH)
def get_tinker_token(world: World) -> None:
    assert ask(world, "get_tinker_token").startswith("tml-")


@case(AUTH)
def tinker_has_credentials(world: World) -> None:
    assert ask(world, "tinker_has_credentials")


@case(AUTH)
def raise_if_tinker_not_accessible(world: World) -> None:
    ask(world, "raise_if_tinker_not_accessible")
