"""What a Fireworks program asks of its trainer, done by the worker that serves everybody."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.webapp.cast import make_actor
from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_datum, make_job, make_tensor
from tests.workers.cast import Kind, make_device, make_tiny, read_answer, read_output, take_turns
from webapp.accounts.credentials import forget_actors
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Metric, Operation, Run
from workers.device import Device

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_remembered_keys() -> Iterator[None]:
    forget_actors()
    yield
    forget_actors()


@pytest.fixture
def trainer() -> Trainer:
    return open_trainer()


def open_trainer(rank: int = 4, **fields: Any) -> Trainer:
    program = Program(make_actor("alice"))
    made = Trainer(program=program, job=make_job(program, make_tiny()))
    made.open_session()
    made.open_model(rank=rank, **fields)
    return made


def read_logprobs(operation: Operation) -> list[float]:
    return [float(value) for row in read_output(operation).logprobs for value in row]


@pytest.fixture
def device() -> Device:
    return make_device()


def make_batch() -> list[Any]:
    return [make_datum(8, weights=make_tensor([0.0, 1, 1, 1, 1, 1, 1, 1])), make_datum(5)]


def test_a_created_model_says_what_it_can(trainer: Trainer, device: Device) -> None:
    take_turns(device)
    answer = read_answer(Operation.objects.get(kind=Kind.CREATE_MODEL))
    assert answer["model_id"] == trainer.model_id
    assert answer["supports_reinforce"] is True


def test_a_loop_learns_and_leaves_its_curve(trainer: Trainer, device: Device) -> None:
    passes = []
    for _ in range(3):
        trainer.learn(*make_batch())
        passes.append(trainer.last)
        adam = {"learning_rate": 1e-2}
        trainer.ask(
            "optim_step", adam_params=adam, grad_accumulation_normalization="num_loss_tokens"
        )
    step = trainer.last
    take_turns(device)
    losses = [read_output(each).metrics["loss:sum"] for each in passes]
    assert losses == sorted(losses, reverse=True)
    assert read_answer(step)["metrics"]["num_loss_tokens"] == 12
    curve = Metric.objects.filter(run=trainer.run, key="loss").order_by("step")
    assert [point.value for point in curve] == pytest.approx([loss / 12 for loss in losses])
    assert trainer.run.step == 3


def test_a_reference_scores_as_the_base_does_whatever_the_policy_learns(
    trainer: Trainer, device: Device
) -> None:
    policy = trainer.model_id
    trainer.score(*make_batch())
    start = trainer.last
    trainer.learn(*make_batch())
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    trainer.score(*make_batch())
    learnt = trainer.last
    trainer.open_model(1, lora_config=None, base_only=True)
    content = {"data": make_batch(), "loss_fn": "cross_entropy"}
    trainer.post("forward", model_id=trainer.model_id, seq_id=1, forward_input=content)
    assert trainer.model_id != policy
    take_turns(device)
    scored = Operation.objects.get(run__is_reference=True, seq=1)
    assert read_logprobs(scored) == read_logprobs(start)
    assert read_logprobs(scored) != read_logprobs(learnt)


def test_weights_of_both_signs_are_the_slopes_of_a_loss_of_the_client(
    trainer: Trainer, device: Device
) -> None:
    """Twice the slopes pull twice as hard: the loss is a plain sum, whatever the weights."""
    for factor in (1, 2):
        slopes = [factor * slope for slope in (0.5, -0.25, 0.0, 1.5)]
        trainer.learn(make_datum(weights=make_tensor(slopes)))
        trainer.ask("optim_step", adam_params={"learning_rate": 0.0})
    take_turns(device)
    steps = Operation.objects.filter(kind=Kind.OPTIM_STEP).order_by("seq")
    first, second = (read_answer(step)["metrics"]["grad_norm"] for step in steps)
    assert second == pytest.approx(2 * first, rel=1e-4)


def test_a_state_is_saved_loaded_and_answered_by_its_name(trainer: Trainer, device: Device) -> None:
    trainer.learn(*make_batch())
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    trainer.ask("save_weights", path="state_1", overwrite=False)
    saved = trainer.last
    trainer.score(*make_batch())
    before = trainer.last
    trainer.learn(*make_batch())
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    take_turns(device)
    assert read_answer(saved)["path"] == "state-1"
    assert trainer.read("list_checkpoints") == {"checkpoints": ["state-1"]}
    trainer.ask("load_weights", path="state-1", optimizer=True)
    loaded = trainer.last
    trainer.score(*make_batch())
    take_turns(device)
    assert read_answer(loaded)["path"] == "state-1"
    assert read_logprobs(trainer.last) == pytest.approx(read_logprobs(before), abs=1e-6)


def test_a_name_that_is_taken_fails_its_promise_and_the_model_goes_on(
    trainer: Trainer, device: Device
) -> None:
    for _ in range(2):
        trainer.ask("save_weights", path="same", overwrite=False)
    take_turns(device)
    failed = trainer.last
    assert (failed.status, failed.error_category) == (Operation.Status.FAILED, "user")
    assert "named same already" in failed.error
    trainer.score()
    take_turns(device)
    assert len(read_logprobs(trainer.last)) == 4


@pytest.mark.parametrize(
    ("rank", "types"),
    [(4, ["adapter", "adapter"]), (0, ["base", "delta"])],
)
def test_snapshots_are_whole_adapters_or_a_base_and_deltas(
    device: Device, rank: int, types: list[str]
) -> None:
    trainer = open_trainer(rank)
    for number, kind in enumerate(("base", "base" if rank else "delta")):
        trainer.learn(*make_batch())
        trainer.ask("optim_step", adam_params={"learning_rate": 1e-3})
        trainer.ask("save_weights_for_sampler", path=f"step-{number}", checkpoint_type=kind)
    take_turns(device)
    assert read_answer(trainer.last)["path"] == "step-1"
    saved = list(Checkpoint.objects.order_by("seq"))
    assert [each.type for each in saved] == types
    assert [each.name for each in saved] == ["step-0", "step-1"]


def test_an_adapter_is_taken_over_by_another_model(trainer: Trainer, device: Device) -> None:
    trainer.learn(*make_batch())
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    trainer.ask("save_weights_for_sampler", path="lora-1")
    trainer.score(*make_batch())
    source = trainer.last
    take_turns(device)
    trainer.open_model(1, rank=4, lora_config={"rank": 4, "seed": 9})
    model = {"model_id": trainer.model_id}
    trainer.post("load_adapter", **model, seq_id=1, adapter_path="lora-1")
    content = {"data": make_batch(), "loss_fn": "cross_entropy"}
    trainer.post("forward", **model, seq_id=2, forward_input=content)
    take_turns(device)
    rows = Operation.objects.filter(run__model_seq_id=1)
    answer = read_answer(rows.get(seq=1))
    assert (answer["type"], answer["adapter_path"]) == ("load_adapter", "lora-1")
    assert read_logprobs(rows.get(seq=2)) == pytest.approx(read_logprobs(source), abs=1e-6)


def test_an_unloaded_model_is_over_and_leaves_the_device(trainer: Trainer, device: Device) -> None:
    trainer.learn(*make_batch())
    trainer.post("unload_model", model_id=trainer.model_id)
    take_turns(device)
    unloaded = Operation.objects.get(kind=Kind.UNLOAD_MODEL)
    assert read_answer(unloaded) == {"model_id": trainer.model_id, "type": "unload_model"}
    assert trainer.run.status == Run.Status.DONE
    device.tidied_at = -np.inf
    device.tidy()
    assert not device.held
    answer = trainer.learn()
    assert (trainer.status, "has ended" in answer["message"]) == (400, True)


def test_vectors_are_asked_for_and_their_gradients_make_a_step(
    trainer: Trainer, device: Device
) -> None:
    config = {"output": "embedding", "pooling": "mean"}
    data = [make_datum(6), make_datum(3)]
    bare = [{"model_input": datum["model_input"]} for datum in data]
    trainer.score(*bare, loss_fn_config=config)
    take_turns(device)
    vectors = read_output(trainer.last).vectors
    assert vectors is not None
    (width,) = vectors[0].shape
    pulled = [
        {**datum, "loss_fn_inputs": {"embedding_grads": make_tensor([0.1] * width)}}
        for datum in bare
    ]
    trainer.learn(*pulled, loss_fn_config=config)
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    step = trainer.last
    trainer.score(*bare, loss_fn_config=config)
    take_turns(device)
    assert read_answer(step)["metrics"]["grad_norm"] > 0
    moved = read_output(trainer.last).vectors
    assert moved is not None
    assert float((moved[0] - vectors[0]).sum()) < 0


def test_a_broken_pass_in_the_middle_spoils_its_step_and_no_other(
    trainer: Trainer, device: Device
) -> None:
    trainer.learn(*make_batch())
    trainer.learn(loss_fn="none")
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    spoiled = trainer.last
    trainer.learn(*make_batch())
    trainer.ask("optim_step", adam_params={"learning_rate": 1e-2})
    take_turns(device)
    spoiled.refresh_from_db()
    assert (spoiled.status, spoiled.error_category) == (Operation.Status.FAILED, "user")
    assert json.loads(bytes(trainer.last.result or b""))["metrics"]["grad_norm"] > 0
