"""Requests, adapters and weights that a generator refuses, each by what is wrong with it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.training.engine.test_generate import GREEDY, PROMPTS, adapters, folders, generator
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest, SamplingParams

__all__ = ["adapters", "folders", "generator"]  # fixtures

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SampleRequest(prompt=[], params=GREEDY), "The prompt is empty"),
        (SampleRequest(prompt=[1, 2048], params=GREEDY), "Token id 2048 at position 1"),
        (SampleRequest(prompt=[-1], params=GREEDY), "Token id -1 at position 0"),
        (
            SampleRequest(prompt=[1] * 500, params=GREEDY),
            r"Prompt length plus max_tokens exceeds the model's context window: 500 \+ 24 > 512",
        ),
        (SampleRequest(prompt=[1], params=GREEDY, num_samples=0), "num_samples must be"),
        (SampleRequest(prompt=[1], params=SamplingParams(max_tokens=0)), "max_tokens must be"),
        (SampleRequest(prompt=[1], params=SamplingParams(temperature=-1)), "temperature must be"),
        (SampleRequest(prompt=[1], params=SamplingParams(top_p=0)), "top_p must be"),
        (SampleRequest(prompt=[1], params=SamplingParams(top_k=-2)), "top_k must be"),
        (SampleRequest(prompt=[1], params=SamplingParams(stop=("",))), "stop string is empty"),
    ],
)
def test_what_can_never_run_is_refused_by_name(
    generator: Generator, request_: SampleRequest, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        generator.submit(request_)
    assert generator.is_idle


def test_an_unknown_adapter_is_refused(generator: Generator) -> None:
    with pytest.raises(InvalidInput, match="adapter gone is not loaded"):
        generator.submit(SampleRequest(prompt=[1], params=GREEDY), adapter="gone")


def test_adapter_folders_that_do_not_fit_are_refused(
    generator: Generator, folders: list[Path], tmp_path: Path
) -> None:
    generator.load_adapter("taken", folders[0])
    with pytest.raises(InvalidInput, match="already loaded"):
        generator.load_adapter("taken", folders[1])
    generator.unload_adapter("taken")
    with pytest.raises(InvalidInput, match="is not loaded"):
        generator.unload_adapter("taken")
    with pytest.raises(InvalidInput, match="is not an adapter"):
        generator.load_adapter("none", tmp_path)


PREFIX = "base_model.model.model.layers.0.mlp.down_proj.lora_"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ("{", {}, "cannot be read as an adapter"),
        ("{}", {}, "has no lora_alpha"),
        ('{"lora_alpha": 1, "use_dora": true}', {}, "use_dora is not supported"),
        ('{"lora_alpha": 1, "rank_pattern": {"q_proj": 2}}', {}, "rank_pattern is not supported"),
        ('{"lora_alpha": 1, "init_lora_weights": "pissa"}', {}, "which changes the base model's"),
        ('{"lora_alpha": 1}', {"A": (2, 384)}, r"lora_B.weight is missing"),
        ('{"lora_alpha": 1}', {"B": (128, 2)}, "the base model has no place for"),
        ('{"lora_alpha": 1}', {"A": (2, 384), "B": (128, 3)}, "is it of another base model"),
        ('{"lora_alpha": 1}', {"A": (2, 385), "B": (128, 2)}, "is it of another base model"),
        ('{"lora_alpha": 1}', None, "cannot be read as an adapter"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_by_what_is_wrong_with_it(
    generator: Generator,
    tmp_path: Path,
    config: str,
    tensors: dict[str, tuple[int, int]] | None,
    message: str,
) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    file = tmp_path / "adapter_model.safetensors"
    if tensors is None:
        file.write_bytes(b"half a file")
    else:
        save_file({f"{PREFIX}{key}.weight": torch.ones(at) for key, at in tensors.items()}, file)
    with pytest.raises(InvalidInput, match=message):
        generator.load_adapter("broken", tmp_path)
    assert "broken" not in generator.loaded


def test_weights_that_are_not_finite_fail_their_request_alone(
    generator: Generator, folders: list[Path], adapters: list[str]
) -> None:
    generator.load_adapter("diverged", folders[1])
    key = generator.loaded["diverged"].key
    generator.adapters.head.pairs[key].b.fill_(float("nan"))
    request = SampleRequest(prompt=PROMPTS[3], params=GREEDY, num_samples=2)
    bad = generator.submit(request, adapter="diverged")
    good = generator.submit(request, adapter=adapters[0])
    results: dict[int, SampleOutput | InvalidInput] = {}
    while not generator.is_idle:
        results |= {each.ticket: each.result for each in generator.step()}
    generator.unload_adapter("diverged")
    assert isinstance(results[bad], InvalidInput)
    assert "not finite" in str(results[bad])
    assert isinstance(results[good], SampleOutput)
