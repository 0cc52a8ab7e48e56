"""SamplingClient, and the future of one, which old programs use as the client itself."""

import pickle
from collections.abc import Callable
from typing import Any

from registry import CASES, Case
from tinker import types
from tinker.lib.api_future_impl import QueueState
from training_cases import bind, check_sampler
from world import MODEL, World, make_prompt, resolve

Play = Callable[[World, Any], object]
SUBJECTS: dict[str, Callable[[World], Any]] = {
    "SamplingClient": lambda world: world.sampler,
    "BackcompatSamplingClientFuture": lambda world: world.sampler_future,
}
PARAMS = types.SamplingParams(max_tokens=3, temperature=0.7)


def sampling(play: Play) -> Play:
    for group, subject in SUBJECTS.items():
        CASES.append(Case(group, play.__name__, bind(play, subject)))
    return play


@sampling
def sample(world: World, sampler: Any) -> None:
    answer = world.perform(sampler, "sample", make_prompt(), 2, PARAMS)
    assert len(answer.sequences) == 2
    assert all(len(each.tokens) == len(each.logprobs) for each in answer.sequences)


@sampling
def compute_logprobs(world: World, sampler: Any) -> None:
    logprobs = world.perform(sampler, "compute_logprobs", make_prompt(8))
    assert logprobs[0] is None
    assert all(each < 0 for each in logprobs[1:])


@sampling
def get_tokenizer(world: World, sampler: Any) -> None:
    assert world.perform(sampler, "get_tokenizer").encode("Hello")


@sampling
def get_base_model(world: World, sampler: Any) -> None:
    assert world.perform(sampler, "get_base_model") == MODEL


@sampling
def get_telemetry(world: World, sampler: Any) -> None:
    world.perform(sampler, "get_telemetry")


@sampling
def on_queue_state_change(world: World, sampler: Any) -> None:
    """What the SDK tells its client when the server says that a sampler waits."""
    world.perform(sampler, "on_queue_state_change", QueueState.ACTIVE, None)


@sampling
def get_sampler_handle(world: World, sampler: Any) -> None:
    assert world.perform(sampler, "get_sampler_handle")


@sampling
def from_sampler_handle(world: World, sampler: Any) -> None:
    """A client in another process; a pickled one goes the same way."""
    handle = resolve(sampler).get_sampler_handle()
    check_sampler(world.perform(type(sampler), "from_sampler_handle", handle))
    check_sampler(pickle.loads(pickle.dumps(resolve(sampler))))


@sampling
def create(world: World, sampler: Any) -> None:
    check_sampler(world.perform(type(sampler), "create", world.service.holder, base_model=MODEL))
