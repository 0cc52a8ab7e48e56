"""Hot-load program: the real SDK trains, saves, and asks the new weights for their first token."""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import tinker
from tinker import types

from bench.sdk_datum import to_datum
from bench.sft_rows import LEARNING_RATE, RANK, read_batches

NUM_WARM = 2  # rounds that are not counted
NUM_SCORED = 8  # samples, whose log-probabilities the trainer tells too
ONE = types.SamplingParams(max_tokens=1, temperature=0.0)
MANY = types.SamplingParams(max_tokens=64, temperature=1.0, seed=5)


class Loop:
    """One run: steps on one batch, and what saving its weights costs."""

    def __init__(self, trainer: Any, data: list[types.Datum]) -> None:
        self.trainer = trainer
        self.data = data
        self.prompt = types.ModelInput.from_ints(data[0].model_input.to_ints()[:16])

    def step(self) -> float:
        """Milliseconds."""
        began = time.perf_counter()
        gradient = self.trainer.forward_backward(self.data, "cross_entropy")
        update = self.trainer.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
        gradient.result()
        update.result()
        return 1000 * (time.perf_counter() - began)

    def sample_new(self) -> float:
        """Milliseconds from the end of a step to the first token of its weights."""
        began = time.perf_counter()
        client = self.trainer.save_weights_and_get_sampling_client()
        client.sample(self.prompt, num_samples=1, sampling_params=ONE).result()
        return 1000 * (time.perf_counter() - began)

    def step_behind_save(self) -> tuple[float, str]:
        """Milliseconds of a step that is asked for right behind a save, and the saved path."""
        began = time.perf_counter()
        saved = self.trainer.save_weights_for_sampler(f"bench-{time.time_ns()}")
        self.step()
        return 1000 * (time.perf_counter() - began), saved.result().path

    def disagree(self) -> float:
        """Mean |difference| between the sampler's log-probabilities and the trainer's, nats."""
        client = self.trainer.save_weights_and_get_sampling_client()
        answer = client.sample(self.prompt, num_samples=NUM_SCORED, sampling_params=MANY).result()
        data, sampled = [], []
        for each in answer.sequences:
            tokens = [*self.prompt.to_ints(), *each.tokens]
            inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
            datum = types.ModelInput.from_ints(tokens[:-1])
            data.append(types.Datum(model_input=datum, loss_fn_inputs=inputs))
            sampled.append(list(each.logprobs))
        outputs = self.trainer.forward(data, "cross_entropy").result().loss_fn_outputs
        gaps = []
        for output, found in zip(outputs, sampled, strict=True):
            scored = output["logprobs"].tolist()[-len(found) :]
            gaps += [abs(a - b) for a, b in zip(scored, found, strict=True)]
        return float(sum(gaps) / len(gaps))


def main(connection: str, model: str, rows: str, rounds: str, steps: str) -> None:
    where = json.loads(Path(connection).read_text())
    service = tinker.ServiceClient(base_url=where["url"], api_key=where["api_key"])
    trainer = service.create_lora_training_client(base_model=model, rank=RANK)
    loop = Loop(trainer, [to_datum(row) for row in read_batches(Path(rows))[0][:1]])
    loop.sample_new()  # which starts the server
    first = loop.disagree()
    for _ in range(NUM_WARM):
        loop.step()
        loop.sample_new()
    totals, alone, behind, paths = [], [], [], []
    for _ in range(int(rounds)):
        alone.append(loop.step())
        totals.append(loop.sample_new())
        milliseconds, path = loop.step_behind_save()
        behind.append(milliseconds)
        paths.append(path)
    for _ in range(max(0, int(steps) - 2 * int(rounds) - NUM_WARM)):
        loop.step()
    told = {"totals": totals, "alone": alone, "behind": behind, "paths": paths}
    print(json.dumps(told | {"disagreement": [first, loop.disagree()]}))


warnings.simplefilter("ignore")
logging.disable(logging.INFO)
main(*sys.argv[1:])
