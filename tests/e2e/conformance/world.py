"""What the cases work on: a user's clients, data, checkpoints; and how they call a method."""

import asyncio
import inspect
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import httpx
import numpy as np
import tinker
from endings import HalfRefusedError
from surface import find_forms, find_known
from tinker import types

MODEL = "tiny-chatml-1m"
RANK = 8
ADAM = types.AdamParams(learning_rate=1e-3)


def renew(argument: Any) -> Any:
    return argument.make() if isinstance(argument, Fresh) else argument


Performed = set[tuple[str, str]]
Passed = set[tuple[str, str, str]]


# Where an SDK knows one optimizer only, it has no word for it.
ADAMW = tinker.AdamOptimizerConfig() if hasattr(tinker, "AdamOptimizerConfig") else None


class Fresh:
    """An argument made anew for each form of a call: a checkpoint is deleted only once."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class World:
    """Clients that are made when a case first asks.

    `performed` is what the case has called, `passed` what all cases have given to what they called.
    """

    def __init__(self) -> None:
        self.performed: Performed = set()
        self.passed: Passed = set()
        self.numbers = itertools.count(1)

    @property
    def key(self) -> str:
        return os.environ["TINKER_API_KEY"]

    @property
    def project(self) -> str:
        return os.environ["TINKER_PROJECT_ID"]

    @cached_property
    def service(self) -> Any:
        return tinker.ServiceClient(user_metadata={"suite": "conformance"})

    @cached_property
    def rest(self) -> Any:
        """Old SDKs make it from a session's client, new ones by itself."""
        is_whole = hasattr(tinker, "RestClient")
        return tinker.RestClient() if is_whole else self.service.create_rest_client()

    @cached_property
    def admin(self) -> Any:
        return tinker.AdminClient()

    @cached_property
    def model(self) -> Any:
        return self.open_model()

    @cached_property
    def model_future(self) -> Any:
        return self.start_model()

    @cached_property
    def sampler(self) -> Any:
        return resolve(self.start_sampler())

    @cached_property
    def sampler_future(self) -> Any:
        return self.start_sampler()

    @cached_property
    def saved(self) -> str:
        """The path of weights to load, read and list."""
        return str(self.save())

    @cached_property
    def loss(self) -> Any:
        """A custom loss: a session makes each one once."""
        ranks = {"logprobs": 1, "weights": 1}
        return resolve(self.service.create_custom_loss(weighted_sum, ranks))

    @cached_property
    def session_id(self) -> str:
        return str(self.service.holder.get_session_id())

    @cached_property
    def notes(self) -> dict[str, str]:
        """What the server says of its own: the SDK drops these from the capabilities it reads."""
        url = f"{os.environ['TINKER_BASE_URL']}/api/v1/get_server_capabilities"
        answer = httpx.get(url, headers={"X-API-Key": self.key}).json()
        return {str(name): str(note) for name, note in answer["notes"].items()}

    def find_note(self, call: str) -> str:
        """Of a loss by its name, of an optimizer by that of its parameters."""
        return self.notes.get(call) or self.notes.get(call.removesuffix("Params").lower(), "")

    def start_model(self, **options: Any) -> Any:
        return self.service.create_lora_training_client(MODEL, rank=RANK, seed=7, **options)

    def open_model(self, **options: Any) -> Any:
        return resolve(self.start_model(**options))

    def start_sampler(self) -> Any:
        return self.service.create_sampling_client(base_model=MODEL)

    def name(self) -> str:
        """A name no checkpoint has yet."""
        return f"save-{next(self.numbers)}"

    def save(self) -> Any:
        return self.model.save_state(self.name()).result().path

    def save_sampler(self) -> Any:
        return self.model.save_weights_for_sampler(self.name()).result().path

    def save_external(self) -> Any:
        return self.model.save_weights_external(self.name()).result().path

    def train(self, model: Any = None) -> Any:
        """One step, so that there is a gradient, an optimizer's state, and weights to save."""
        model = model or self.model
        model.forward_backward([make_datum()], "cross_entropy").result()
        return model.optim_step(ADAM).result()

    def perform(self, subject: Any, method: str, /, *args: Any, **options: Any) -> Any:
        """Both forms of a call, `method` and `method_async`; the answer of the first.

        An error of the first is raised after the second has had its turn. Options that this SDK
        does not have yet are left out: the newest one's are all counted in the end.
        """
        owner = subject if isinstance(subject, type) else type(subject)
        forms = find_forms(owner, method)
        assert forms, f"{owner.__name__} has no {method}"
        known = find_known(owner, method)
        kept = {name: value for name, value in options.items() if name in known}
        return take_first({form: self.call(subject, owner, form, args, kept) for form in forms})

    def call(
        self, subject: Any, owner: type, form: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Future[Any]:
        names = find_passed(owner, form, args, options)
        for each in owner.__mro__:
            self.performed.add((each.__name__, form))
            self.passed |= {(each.__name__, form, name) for name in names}
        args = tuple(renew(each) for each in args)
        options = {key: renew(value) for key, value in options.items()}
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run_form, subject, owner, form, args, options)


def find_passed(
    owner: type, form: str, args: tuple[Any, ...], options: dict[str, Any]
) -> list[str]:
    member = inspect.getattr_static(owner, form)
    if isinstance(member, property):
        return []
    given = args if isinstance(member, staticmethod) else (None, *args)
    return list(inspect.signature(getattr(owner, form)).bind(*given, **options).arguments)


def take_first(endings: dict[str, Future[Any]]) -> Any:
    """The plain form's answer, or its error. Where only one form fails, that is what is told."""
    errors = {form: ending.exception() for form, ending in endings.items()}
    failed = {form: error for form, error in errors.items() if error is not None}
    if failed and len(failed) < len(errors):
        form, error = next(iter(failed.items()))
        raise HalfRefusedError(form) from error
    return next(iter(endings.values())).result()


def run_form(
    subject: Any, owner: type, form: str, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    if isinstance(inspect.getattr_static(owner, form), property):
        return getattr(subject, form)
    method = getattr(subject, form)
    if inspect.iscoroutinefunction(inspect.unwrap(method)) and form.endswith("_async"):
        return asyncio.run(wait_for(method, args, options))
    return resolve(method(*args, **options))


async def wait_for(method: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Old SDKs await once for a future and once more for its result."""
    answer = await method(*args, **options)
    return await answer if inspect.isawaitable(answer) else answer


def weighted_sum(logprobs: Any, weights: Any) -> tuple[Any, dict[str, Any]]:
    return -(logprobs * weights).sum(), {}


def resolve(answer: Any) -> Any:
    return answer.result() if hasattr(answer, "result") else answer


def make_tokens(count: int = 12, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, 500, count)]


def make_prompt(count: int = 8) -> Any:
    return types.ModelInput.from_ints(make_tokens(count))


def make_datum(**inputs: Any) -> Any:
    """A datum for cross_entropy, or for what `inputs` say."""
    tokens = make_tokens(13)
    given = inputs or {"weights": [1.0] * 12}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **given},
    )


def make_scored_datum() -> Any:
    """For the losses that compare with the policy that sampled."""
    return make_datum(logprobs=[-6.0] * 12, advantages=[0.0] * 4 + [1.0] * 8)
