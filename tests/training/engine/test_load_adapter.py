"""A run that begins with the weights of a PEFT folder, whoever wrote it."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import AdamParams, ForwardBackward, LoraSpec

ADAM = AdamParams(learning_rate=1e-2)


def learn(engine: Engine, run: str = "run") -> None:
    engine.forward_backward({run: ForwardBackward(data=make_data(9, 20))})


@pytest.fixture
def folder(engine: Engine, tmp_path: Path) -> Path:
    """Of a run that has learned something."""
    learn(engine)
    engine.optim_step("run", ADAM)
    engine.save_weights("run", tmp_path / "source", optimizer=False)
    return tmp_path / "source"


def test_it_has_the_weights_of_the_folder_and_nothing_of_its_own(
    engine: Engine, folder: Path
) -> None:
    engine.create_adapter("other", LoraSpec(rank=4, seed=9))
    learn(engine, "other")
    engine.optim_step("other", ADAM)
    learn(engine, "other")
    engine.load_adapter("other", folder)
    runs = [engine.find_weights(run) for run in ("run", "other")]
    assert torch.equal(runs[0].values, runs[1].values)
    assert not engine.has_gradients("other")
    assert runs[1].counts.num_sequences == 0
    assert engine.optimizers["other"].num_steps == 0
    assert engine.probe("other").logprobs == pytest.approx(engine.probe("run").logprobs)


def test_another_alpha_gives_the_same_model(engine: Engine, folder: Path) -> None:
    engine.create_adapter("other", LoraSpec(rank=4, alpha=11.0))
    engine.load_adapter("other", folder)
    expected = engine.probe("run").logprobs
    assert engine.probe("other").logprobs == pytest.approx(expected, abs=1e-5)


def test_a_folder_that_peft_wrote_is_as_good(
    engine: Engine, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_paths["llama"], dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads what transformers has renamed
        theirs = get_peft_model(model, config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    engine.load_adapter("run", tmp_path / "theirs")
    probe = engine.probe("run")
    ids = torch.tensor(probe.tokens)
    with torch.no_grad():
        logits = theirs(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    told = logits.gather(1, ids[1:, None]).squeeze(1)
    assert probe.logprobs == pytest.approx(told.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LoraSpec(rank=8), "this run of rank 8 has"),
        (LoraSpec(rank=4, train_mlp=False), "source trains more than this run does"),
        (LoraSpec(rank=4, train_unembed=True), "source does not train all that this run trains"),
    ],
)
def test_another_rank_or_other_layers_are_refused_and_nothing_changes(
    engine: Engine, folder: Path, spec: LoraSpec, words: str
) -> None:
    engine.create_adapter("other", spec)
    before = engine.find_weights("other").values.clone()
    with pytest.raises(InvalidInput, match=words):
        engine.load_adapter("other", folder)
    assert torch.equal(engine.find_weights("other").values, before)


def test_another_base_a_whole_model_and_a_broken_file_are_refused(
    engine: Engine, folder: Path, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    manifest = folder / "manifest.json"
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**written, "base_digest": "0" * 64}))
    with pytest.raises(InvalidInput, match="source was trained on another base model"):
        engine.load_adapter("run", folder)
    manifest.unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(InvalidInput, match="source cannot be read as an adapter"):
        engine.load_adapter("run", folder)
    whole = Engine.load(random_paths["llama"])
    whole.create_adapter("run", LoraSpec(rank=0))
    with pytest.raises(InvalidInput, match="a full-parameter run loads all weights"):
        whole.load_adapter("run", folder)
    whole.save_weights("run", tmp_path / "whole", optimizer=False)
    with pytest.raises(InvalidInput, match="that is no adapter"):
        engine.load_adapter("run", tmp_path / "whole")


def test_weights_in_half_precision_are_widened(engine: Engine, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: each.bfloat16() for name, each in load_file(file).items()}, file)
    engine.load_adapter("run", folder)
    assert engine.find_weights("run").values.dtype == torch.float32
