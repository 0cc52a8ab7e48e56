"""What samples came with is compared with the learner, when they are first learned from."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.workers.cast import Program, make_datum, make_device, read_output, take_turns
from training.types import Datum
from webapp.runs.models import Run
from workers.device import Device
from workers.disagreement import find_sampled

pytestmark = pytest.mark.django_db

PROMPT = 4  # of a datum's targets


@pytest.fixture
def program() -> Program:
    program = Program()
    program.create()
    return program


@pytest.fixture
def device() -> Device:
    return make_device()


@pytest.fixture
def sample(program: Program, device: Device) -> Callable[..., list[Datum]]:
    """Datums with the log-probabilities that the learner itself finds now, and `off` by so much."""

    def sample(*offs: float) -> list[Datum]:
        data = [make_datum(seed) for seed in range(len(offs))]
        scored = program.learn_from(data, forward_only=True)
        take_turns(device)
        found = read_output(scored).logprobs
        return [rate(*each) for each in zip(data, found, offs, strict=True)]

    return sample


def rate(datum: Datum, logprobs: np.ndarray, off: float) -> Datum:
    """As a client does it: nothing of the prompt has a log-probability or an advantage."""
    is_sampled = np.arange(len(datum.tokens)) >= PROMPT
    inputs = {
        "target_tokens": datum.inputs["target_tokens"],
        "logprobs": np.where(is_sampled, logprobs - off, 0.0).astype(np.float32),
        "advantages": np.where(is_sampled, 1.0, 0.0).astype(np.float32),
    }
    return replace(datum, inputs=inputs)


def learn(program: Program, device: Device, data: Sequence[Datum], loss: str = "ppo") -> None:
    program.learn_from(data, loss_fn=loss)
    program.step()
    take_turns(device)


def read(run: Run, step: int) -> dict[str, float]:
    points = run.metrics.filter(step=step, key__startswith="sampler/")
    return dict(points.values_list("key", "value"))


def test_samples_of_the_learner_itself_agree_from_the_first_step(
    program: Program, device: Device, sample: Callable[..., list[Datum]]
) -> None:
    learn(program, device, sample(0.0, 0.0))
    assert read(program.run, 1) == pytest.approx(
        {"sampler/logprob_difference_mean": 0.0, "sampler/kl": 0.0}, abs=1e-5
    )


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro"])
def test_the_mean_difference_and_the_divergence_are_those_of_the_sampled_tokens(
    program: Program, device: Device, sample: Callable[..., list[Datum]], loss: str
) -> None:
    learn(program, device, sample(0.1, -0.3), loss)
    k3 = [np.expm1(off) - off for off in (0.1, -0.3)]
    assert read(program.run, 1) == pytest.approx(
        {"sampler/logprob_difference_mean": 0.2, "sampler/kl": np.mean(k3)}, abs=1e-4
    )


def test_only_the_first_pass_over_a_sample_counts(
    program: Program, device: Device, sample: Callable[..., list[Datum]]
) -> None:
    data = sample(0.0, 0.0)
    learn(program, device, data)
    learn(program, device, data)
    learn(program, device, sample(0.5))
    assert read(program.run, 2) == {}
    assert read(program.run, 3)["sampler/logprob_difference_mean"] == pytest.approx(0.5, abs=1e-4)


def test_batches_of_one_step_make_one_point(
    program: Program, device: Device, sample: Callable[..., list[Datum]]
) -> None:
    first, second, third = sample(0.1, 0.1, 0.4)
    program.learn_from([first, second], loss_fn="ppo")
    learn(program, device, [third])
    assert read(program.run, 1)["sampler/logprob_difference_mean"] == pytest.approx(0.2, abs=1e-4)


def test_what_a_datum_tells_of_its_samples_counts_before_its_advantages() -> None:
    """A group whose answers were all as good has no advantages, and was sampled all the same."""
    datum = rate(make_datum(1), np.zeros(12), 0.0)
    sampled = datum.inputs["advantages"] != 0
    unrated = replace(datum, inputs={**datum.inputs, "advantages": np.zeros(12, np.float32)})
    told = replace(unrated, sampled=sampled)
    assert find_sampled(told, knows_all=True).tolist() == sampled.tolist()
    assert not find_sampled(unrated, knows_all=True).any()
    assert not find_sampled(told, knows_all=False).any()


def test_a_run_that_learns_from_no_samples_has_no_such_curve(
    program: Program, device: Device
) -> None:
    program.train(range(1))
    take_turns(device)
    assert read(program.run, 1) == {}
