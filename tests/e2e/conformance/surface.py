"""What an installed SDK offers, by introspection: nothing here is a list kept by hand."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import tinker
from tinker import types
from tinker.cli.__main__ import main_cli
from tinker.lib import public_interfaces

ASYNC = "_async"
COMMANDS = "Command line"
AUTH = "tinker.auth"


PLACES = sorted(Path(public_interfaces.__path__[0]).glob("[a-z]*.py"))
# What a reader looks for first; a class that is not named here follows.
ORDER = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")
# APIFuture's calls are made on the futures that the other calls give.
PARTS = ("AwaitableConcurrentFuture", "BackcompatClientFuture")


def find_surface() -> dict[str, list[str]]:
    """Group -> its calls; a method and its `_async` twin are one call."""
    surface = {owner.__name__: list_calls(owner) for owner in find_classes()}
    if hasattr(tinker, "auth"):
        surface[AUTH] = list(tinker.auth.__all__)
    surface[COMMANDS] = list(walk_commands(main_cli, ()))
    return surface | find_options()


def find_classes() -> list[type]:
    """Whatever class the modules of the SDK's public interfaces define, exported or not."""
    found = {name: owner for path in PLACES for name, owner in read_classes(path)}
    ordered = [name for name in ORDER if name in found]
    return [found[name] for name in [*ordered, *sorted(found.keys() - {*ORDER, *PARTS})]]


def read_classes(path: Path) -> Iterator[tuple[str, type]]:
    """By its source: a class that is exported calls another module its own."""
    module = import_module(f"{public_interfaces.__name__}.{path.stem}")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, getattr(module, node.name)


def find_class(group: str) -> type | None:
    return next((each for each in find_classes() if each.__name__ == group), None)


def list_calls(owner: type) -> list[str]:
    public = [name for name in dir(owner) if not name.startswith("_") and is_call(owner, name)]
    return sorted({name.removesuffix(ASYNC) for name in public})


def is_call(owner: type, name: str) -> bool:
    member = inspect.getattr_static(owner, name)
    return isinstance(member, property | staticmethod | classmethod) or callable(member)


def find_forms(owner: type, name: str) -> list[str]:
    return [form for form in (name, name + ASYNC) if hasattr(owner, form)]


def find_known(owner: type, form: str) -> set[str]:
    """The deprecated futures hand on whatever they get: what their client knows."""
    owners = [each for each in owner.__mro__ if hasattr(each, form)]
    return {name for each in owners for name in find_parameters(each, form)}


def find_parameters(owner: type, form: str) -> list[str]:
    """What a caller may give by its name."""
    member = inspect.getattr_static(owner, form)
    if isinstance(member, property):
        return []
    parameters = inspect.signature(getattr(owner, form)).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.kind not in several and each.name != "self"]


def walk_commands(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield " ".join(path)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None, name
        yield from walk_commands(inner, (*path, name))


def find_options() -> dict[str, list[str]]:
    """What the calls take: a new loss, chunk or parameter is as much a promise as a method."""
    sample = inspect.signature(tinker.SamplingClient.sample).parameters
    parameters = [name for name in sample if name not in ("self", "prompt", "sampling_params")]
    return {
        "Losses": list(get_args(types.LossFnType)),
        "Optimizers": [each.__name__ for each in find_optimizers()],
        "LoRA configuration": list(types.LoraConfig.model_fields),
        "Training input": [f"{chunk.__name__} in training" for chunk in find_chunks()],
        "Sampling input": [f"{chunk.__name__} in a prompt" for chunk in find_chunks()],
        "Sampling options": parameters + list(types.SamplingParams.model_fields),
    }


def find_optimizers() -> list[type]:
    """A family of optimizers is named by its base: its members are what a user passes."""
    several = unfold(getattr(types, "OptimParams", types.AdamParams)) or [types.AdamParams]
    return [leaf for each in several for leaf in each.__subclasses__() or [each]]


def find_chunks() -> list[type]:
    return unfold(types.ModelInputChunk)


def unfold(alias: Any) -> list[type]:
    """The classes of `Union[A, B]`, with or without `Annotated` around it or them."""
    return [strip(member) for member in get_args(strip(alias))]


def strip(alias: Any) -> Any:
    return get_args(alias)[0] if get_origin(alias) is Annotated else alias
