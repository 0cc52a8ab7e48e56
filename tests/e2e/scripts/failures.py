"""Loops that fail without a word, one model each, and healthy ones: prints which model is which."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import tinker
from program import ADAM, connect, make_datum, open_model, report, step, types

service = connect()
PROMPT = list(range(5, 25))


def give_up(future: Any) -> None:
    """A step that is refused is the user's to go on from."""
    with suppress(tinker.APIError, tinker.TinkerError, ValueError):
        future.result()


def learn(model: Any, data: list[types.Datum], loss_fn: str) -> None:
    gradient = model.forward_backward(data, loss_fn)
    update = model.optim_step(ADAM)
    gradient.result()
    update.result()


def make_sampled(tokens: list[int], logprobs: list[float], advantage: float) -> types.Datum:
    """An answer to PROMPT, as a reinforcement learning loop sends it."""
    quiet = [0.0] * (len(PROMPT) - 1)
    inputs = {
        "target_tokens": [*PROMPT, *tokens][1:],
        "logprobs": [*quiet, *logprobs],
        "advantages": [*quiet, *([advantage] * len(tokens))],
    }
    prompt = types.ModelInput.from_ints([*PROMPT, *tokens][:-1])
    return types.Datum(model_input=prompt, loss_fn_inputs=inputs)


def sample(sampler: Any, number: int, seed: int = 1, length: int = 6) -> list[Any]:
    params = types.SamplingParams(max_tokens=length, seed=seed, stop=[])
    asked = sampler.sample(types.ModelInput.from_ints(PROMPT), number, params)
    return list(asked.result().sequences)


def wait_for_each(model: Any) -> None:
    """The result of every forward_backward before its optim_step."""
    data = [make_datum(seed, 120) for seed in range(24)]
    for _ in range(10):
        model.forward_backward(data, "cross_entropy").result()
        model.optim_step(ADAM).result()


def keep_a_sampler(model: Any) -> None:
    sampler = model.save_weights_and_get_sampling_client()
    for number in range(4):
        step(model, make_datum(number))
        model.save_weights_for_sampler(f"after-{number}").result()
        sample(sampler, 1, seed=number)
        sample(sampler, 1, seed=100 + number)


def shift_logprobs(model: Any) -> None:
    """As with another renderer or temperature: the log-probabilities are of something else."""
    for number in range(3):
        sampler = model.save_weights_and_get_sampling_client()
        shifted = [
            make_sampled(list(each.tokens), [value - 0.5 for value in each.logprobs], sign)
            for each, sign in zip(sample(sampler, 2, seed=number), (1.0, -1.0), strict=True)
        ]
        learn(model, shifted, "importance_sampling")


def keep_constant_groups(model: Any) -> None:
    for number in range(3):
        sampler = model.save_weights_and_get_sampling_client()
        answers = sample(sampler, 4, seed=number)
        data = [make_sampled(list(each.tokens), list(each.logprobs), 0.0) for each in answers]
        learn(model, data, "importance_sampling")


def raise_the_rate(model: Any) -> None:
    """Calm for a dozen steps, then a learning rate of one."""
    data = [make_datum(seed) for seed in range(4)]
    for rate in [1e-4] * 12 + [1.0] * 2:
        gradient = model.forward_backward(data, "cross_entropy")
        update = model.optim_step(types.AdamParams(learning_rate=rate))
        gradient.result()
        update.result()


def overflow(model: Any) -> None:
    datum = make_datum(1)
    huge = {"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": [3e38] * 12}
    step(model, datum)
    model.forward_backward(
        [types.Datum(model_input=datum.model_input, loss_fn_inputs=huge)], "cross_entropy"
    ).result()
    give_up(model.optim_step(ADAM))


def let_a_parent_expire(model: Any) -> None:
    step(model, make_datum(1))
    saved = model.save_state("soon-gone", ttl_seconds=3600).result()
    branch = service.create_training_client_from_state(saved.path)
    step(branch, make_datum(2))


def learn_by_heart(model: Any) -> None:
    """Random rows have nothing in common: knowing some makes the others less likely."""
    known, unknown = [make_datum(seed) for seed in range(2)], [make_datum(50), make_datum(51)]
    for _ in range(10):
        model.forward(unknown, "cross_entropy").result()
        gradient = model.forward_backward(known, "cross_entropy")
        update = model.optim_step(types.AdamParams(learning_rate=1e-2))
        gradient.result()
        update.result()
    model.save_state("after-ten").result()


def pay_for_repeats(model: Any) -> None:
    """The higher advantage goes to an answer that says one token again and again."""
    for number in range(5):
        fresh = np.random.default_rng(number).integers(5, 500, 24).tolist()
        data = [
            make_sampled([7] * 24, [-3.0] * 24, 1.0),
            make_sampled(fresh, [-6.0] * 24, -1.0),
        ]
        learn(model, data, "importance_sampling")


def use_old_samples(model: Any) -> None:
    """All samples are drawn at the beginning, and each step learns from the next of them."""
    for each in sample(model.save_weights_and_get_sampling_client(), 14):
        datum = make_sampled(list(each.tokens), list(each.logprobs), 1.0)
        learn(model, [datum], "importance_sampling")


def do_it_right(model: Any) -> None:
    """Ahead of the device, on fresh samples, with answers that differ in worth."""
    for number in range(6):
        sampler = model.save_weights_and_get_sampling_client()
        answers = sample(sampler, 4, seed=number)
        worth = [1.0, -1.0, 0.5, -0.5]
        data = [
            make_sampled(list(each.tokens), list(each.logprobs), advantage)
            for each, advantage in zip(answers, worth, strict=True)
        ]
        learn(model, data, "importance_sampling")
    model.save_state("kept").result()


def learn_well(model: Any) -> None:
    """The loop that every tutorial shows, on passes long enough to tell who waits."""
    data = [make_datum(seed, 120) for seed in range(24)]
    for _ in range(12):
        step(model, *data)


LOOPS: dict[str, Callable[[Any], None]] = {
    "sequential_client": wait_for_each,
    "stale_sampler": keep_a_sampler,
    "sampler_trainer_disagree": shift_logprobs,
    "zero_signal_groups": keep_constant_groups,
    "non_finite_or_spiking": raise_the_rate,
    "refused": overflow,
    "checkpoint_will_expire": let_a_parent_expire,
    "memorising": learn_by_heart,
    "reward_hacking": pay_for_repeats,
    "off_policy": use_old_samples,
    "healthy_policy": do_it_right,
    "healthy": learn_well,
}
models = {}
for name, loop in LOOPS.items():
    model = open_model(service)
    models[name] = model.get_info().model_id
    loop(model)
service.close("success").result()
report(models=models)
