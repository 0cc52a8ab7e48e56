"""A mixture of experts through the whole of training: turns, autosaves, a crash, and serving."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.workers.cast import (
    TINY,
    Kind,
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_loss,
)
from training.engine.generate import Generator
from training.routing import FREE
from training.types import Datum, SampleOutput, SampleRequest, SamplingParams
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.services import add_base_model
from webapp.runs import queue
from webapp.runs.models import Operation
from webapp.tinker.wire_samples import encode_sample_output
from webapp.wire import wire_pb2 as pb
from workers import journal
from workers.device import Device
from workers.generation import App
from workers.gpu import run_turn
from workers.residents import Residents, Setup, TurnThread
from workers.vllm import SamplingServer

pytestmark = pytest.mark.django_db

SHAPE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def _base_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE)).save_pretrained(tmp_path / "mixture")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "mixture" / name).write_bytes((TINY / name).read_bytes())
    added = add_base_model(path=str(tmp_path / "mixture"), names=["mixture"])
    assert added.architecture == "Qwen3MoeForCausalLM"


def ask(first: int) -> list[tuple[Program, list[Operation]]]:
    """Two programs of different ranks, one of which trains the experts alone."""
    asked = []
    for index, settings in enumerate(({"rank": 2}, {"rank": 5, "train_attn": False})):
        program = Program(run=make_client_run(first + index))
        program.create(**settings)
        operations = program.train(range(2))
        program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="served")
        asked.append((program, operations))
    return asked


def work(device: Device, *, with_crashes: bool) -> None:
    while run_turn(device):
        if with_crashes:
            queue.release_worker(worker=device.setup.name)
            device = make_device(device.setup.name)


@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
def test_crashes_change_no_loss_of_runs_that_share_experts(
    monkeypatch: pytest.MonkeyPatch, autosave_seconds: float
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    calm = ask(0)
    work(make_device("calm"), with_crashes=False)
    rough = ask(10)
    work(make_device("rough"), with_crashes=True)
    losses = [
        [read_loss(operation) for _, operations in asked for operation in operations]
        for asked in (calm, rough)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][1] != losses[0][3]  # after a step the two are different runs


def test_what_a_worker_saved_is_what_the_sampler_serves(tmp_path: Path) -> None:
    asked = ask(0)
    work(make_device(), with_crashes=False)
    generator = Generator.load(tmp_path / "mixture")
    for program, _ in asked:
        checkpoint = Checkpoint.objects.get(run=program.run)
        generator.load_adapter(str(program.run.pk), tmp_path / checkpoint.path)
        prompt = checkpoint.probe["tokens"]
        request = SampleRequest(
            prompt=prompt, params=SamplingParams(max_tokens=1), prompt_logprobs=True
        )
        generator.submit(request, adapter=str(program.run.pk))
        results = [each.result for _ in range(9) for each in generator.step()]
        (output,) = results
        assert isinstance(output, SampleOutput)
        assert output.prompt_logprobs is not None
        expected = checkpoint.probe["logprobs"]
        assert output.prompt_logprobs[1:] == pytest.approx(expected, abs=1e-5)


def add_routes(seed: int) -> Datum:
    """To experts that no router would choose so often, but for a free position."""
    datum = make_datum(seed)
    routes = np.tile(np.array([4, 5]), (len(datum.tokens), 2, 1))
    routes[0] = FREE
    return replace(datum, routes=routes)


def test_routes_of_a_request_are_kept_for_a_replay_which_gives_the_same_weights() -> None:
    losses = []
    for number, with_crashes in enumerate((False, True)):
        program = Program(run=make_client_run(number))
        program.create()
        operations = []
        for seed in range(2):
            operations.append(program.learn_from([add_routes(seed), make_datum(seed)]))
            program.step()
        work(make_device(f"worker{number}"), with_crashes=with_crashes)
        losses.append([read_loss(operation) for operation in operations])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    free = Program(run=make_client_run(5))
    free.create()
    alone = free.learn_from([make_datum(0), make_datum(0)])
    work(make_device("last"), with_crashes=False)
    assert read_loss(alone) != pytest.approx(losses[0][0], rel=1e-5)


async def test_routes_of_a_sample_travel_from_the_built_in_server(tmp_path: Path) -> None:
    residents = Residents(Setup(models={"mixture": tmp_path / "mixture"}))
    turns = TurnThread(residents, on_death=lambda: None)
    turns.start()
    params = SamplingParams(max_tokens=3, seed=1, stop=())
    request = SampleRequest(prompt=[4, 5, 6, 7], params=params, with_routes=True)
    transport = httpx.ASGITransport(App(turns))
    async with SamplingServer("http://sampler", transport=transport) as server:
        output = await server.generate("mixture", request)
    await asyncio.to_thread(turns.stop)
    generator = Generator.load(tmp_path / "mixture")
    generator.submit(request)
    (expected,) = [each.result for _ in range(5) for each in generator.step()]
    assert isinstance(expected, SampleOutput)
    assert output.prompt_routes is not None
    assert output.sequences[0].routes is not None
    np.testing.assert_array_equal(output.prompt_routes, expected.prompt_routes)
    np.testing.assert_array_equal(output.sequences[0].routes, expected.sequences[0].routes)
    told = pb.SampleResponse.FromString(encode_sample_output(output, request))
    assert (told.prompt_routes.layers, told.prompt_routes.chosen) == (2, 2)
    assert len(told.sequences[0].routes.ids) == 2 * 3 * 2 * 2
