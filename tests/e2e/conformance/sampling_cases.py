"""SamplingClient, and the future of one, which old programs use as the client itself."""

import pickle
from collections.abc import Callable
from typing import Any

from registry import CASES, Case
from tinker import types
from tinker.lib.api_future_impl import QueueState
from tinker.lib.retry_handler import RetryConfig
from training_cases import bind, check_sampler
from world import MODEL, World, make_prompt, make_tokens, resolve

Play = Callable[[World, Any], object]
SUBJECTS: dict[str, Callable[[World], Any]] = {
    "SamplingClient": lambda world: world.sampler,
    "BackcompatSamplingClientFuture": lambda world: world.sampler_future,
}
PARAMS = types.SamplingParams(max_tokens=3, temperature=0.7)
EVERYTHING = {
    "include_prompt_logprobs": True,
    "topk_prompt_logprobs": 2,
    "topk_sample_logprobs": 2,
    "target_prompt_logprobs": types.TensorData(data=make_tokens(14), dtype="int64", shape=[7, 2]),
    "prompt_alt_tokens_k": 2,
}
LAST = {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 3}


def sampling(play: Play) -> Play:
    for group, subject in SUBJECTS.items():
        CASES.append(Case(group, play.__name__, bind(play, subject)))
    return play


@sampling
def sample(world: World, sampler: Any) -> None:
    answer = world.perform(sampler, "sample", make_prompt(), 2, PARAMS)
    assert len(answer.sequences) == 2
    assert all(len(each.tokens) == len(each.logprobs) for each in answer.sequences)
    for options in (EVERYTHING, LAST):
        answer = world.perform(sampler, "sample", make_prompt(8), 1, PARAMS, **options)
        assert len(answer.prompt_logprobs) == 8


@sampling
def compute_logprobs(world: World, sampler: Any) -> None:
    logprobs = world.perform(sampler, "compute_logprobs", make_prompt(8))
    assert logprobs[0] is None
    assert all(each < 0 for each in logprobs[1:])
    world.perform(sampler, "compute_logprobs", make_prompt(8), prompt_logprobs_last_n=3)


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
    options = {"api_key": world.key}
    check_sampler(world.perform(type(sampler), "from_sampler_handle", handle, **options))
    check_sampler(pickle.loads(pickle.dumps(resolve(sampler))))


@sampling
def create(world: World, sampler: Any) -> None:
    for options in (
        {"base_model": MODEL, "retry_config": RetryConfig(), "record_stability_info": True},
        {"model_path": world.save_sampler()},
        {"sampling_session_id": world.sampler._sampling_session_id},
    ):
        made = world.perform(type(sampler), "create", world.service.holder, **options)
        check_sampler(made)
