"""A whole RL run: sample from passing weights, reward, learn from it; halfway from a checkpoint."""

from typing import Any

from program import ADAM, MODEL, connect, open_model, read_logprobs, report, types

PROMPTS = ([5, 6, 7, 8], [9, 10, 11])
NUM_SAMPLES, MAX_TOKENS = 3, 5


def make_datum(prompt: list[int], sequence: Any, advantage: float) -> types.Datum:
    """Prompt tokens are no actions: no logprob to compare with, and no advantage."""
    tokens, known = prompt + list(sequence.tokens), len(prompt) - 1
    # Which requests share a pass shows in the last bits of their logprobs, and is nobody's promise.
    logprobs = [round(each, 2) for each in sequence.logprobs]
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": [0.0] * known + logprobs,
        "advantages": [0.0] * known + [advantage] * len(sequence.tokens),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def reward(sequence: Any) -> float:
    """Anything that differs between samples: even token ids are good here."""
    return sum(token % 2 == 0 for token in sequence.tokens) / len(sequence.tokens)


def learn(model: Any, number: int) -> list[list[int]]:
    """Every sample is asked for before any is waited for."""
    policy = model.save_weights_and_get_sampling_client()
    params = [
        types.SamplingParams(max_tokens=MAX_TOKENS, seed=100 * number + index, stop=[])
        for index in range(len(PROMPTS))
    ]
    asked = [
        policy.sample(types.ModelInput.from_ints(prompt), NUM_SAMPLES, sampling_params=each)
        for prompt, each in zip(PROMPTS, params, strict=True)
    ]
    groups = [each.result().sequences for each in asked]
    data = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        mean = sum(map(reward, group)) / len(group)
        data += [make_datum(prompt, each, reward(each) - mean) for each in group]
    gradient = model.forward_backward(data, "importance_sampling")
    update = model.optim_step(ADAM)
    gradient.result()
    update.result()
    return [list(each.tokens) for group in groups for each in group]


service = connect()
model = open_model(service)
sampled = [learn(model, number) for number in range(3)]
saved = model.save_state("half", ttl_seconds=7200).result()
resumed = service.create_training_client_from_state_with_optimizer(saved.path).result()
sampled += [learn(resumed, number) for number in range(3, 5)]
final = resumed.save_weights_for_sampler("final").result()
probe = types.Datum(
    model_input=types.ModelInput.from_ints(list(range(20, 32))),
    loss_fn_inputs={"target_tokens": list(range(21, 33)), "weights": [1.0] * 12},
)
scored = read_logprobs(resumed.forward([probe], "cross_entropy").result())
base = service.create_sampling_client(base_model=MODEL).get_base_model()
service.close("success").result()
report(sampled=sampled, scored=scored, final=final.path, base=base)
