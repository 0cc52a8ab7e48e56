"""Adapters merged into their base's files: the same model for transformers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.training.engine.reference import load_peft
from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.merge import merge_adapter, restore_model
from training.engine.verify import verify_adapter, verify_model
from training.errors import InvalidInput
from training.types import AdamParams, ForwardBackward, LoraSpec, Probe

Stir = Callable[[Engine, str], None]
ADAM = AdamParams(learning_rate=1e-2)
SPECS = {
    "layers": LoraSpec(rank=4),
    "head": LoraSpec(rank=4, train_unembed=True),
    "embedding": LoraSpec(rank=3, train_mlp=False, train_embed=True),
    "both ends": LoraSpec(rank=3, train_attn=False, train_unembed=True, train_embed=True),
}


def save(path: Path, spec: LoraSpec, folder: Path, stir: Stir, **options: Path) -> Probe:
    engine = Engine.load(path)
    engine.create_adapter("run", spec)
    if not spec.is_full:
        stir(engine, "run")
    data = make_data(9, 21, vocab_size=engine.vocab_size)
    engine.forward_backward({"run": ForwardBackward(data=data)})
    engine.optim_step("run", ADAM)
    return engine.save_weights("run", folder, optimizer=False, **options).probe


def read_files(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "merged").mkdir()
    return tmp_path / "merged"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_merged_model_is_the_trained_one_also_where_its_ends_were_one_matrix(
    model_path: Path, spec: LoraSpec, tmp_path: Path, target: Path, stir: Stir
) -> None:
    probe = save(model_path, spec, tmp_path / "adapter", stir)
    merge_adapter(model_path, tmp_path / "adapter", target, "source")
    stored = {each.dtype for each in read_files(model_path).values()}
    assert {each.dtype for each in read_files(target).values()} == stored
    found = verify_model(target, probe)
    # Of weights that are stored as bfloat16 the sum is rounded to it.
    assert found.max_difference < (1e-4 if stored == {torch.float32} else 0.05)
    assert found.mean_difference <= found.max_difference
    parts = spec.train_unembed or spec.train_embed
    was_tied = json.loads((model_path / "config.json").read_text())["tie_word_embeddings"]
    is_tied = json.loads((target / "config.json").read_text())["tie_word_embeddings"]
    assert is_tied is (was_tied and not parts)
    assert ("lm_head.weight" in read_files(target)) is not is_tied


def test_a_merge_is_the_rounded_sum_that_peft_computes_with(
    random_paths: dict[str, Path], tmp_path: Path, target: Path, stir: Stir
) -> None:
    save(random_paths["llama"], SPECS["head"], tmp_path / "adapter", stir)
    merge_adapter(random_paths["llama"], tmp_path / "adapter", target, "source")
    theirs = load_peft(random_paths["llama"], tmp_path / "adapter").merge_and_unload()
    found = read_files(target)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, atol=1e-6, rtol=1e-5)


def test_a_mixtures_experts_are_merged_one_by_one(
    mixture: Path, tmp_path: Path, target: Path, stir: Stir
) -> None:
    probe = save(mixture, LoraSpec(rank=2, train_unembed=True), tmp_path / "adapter", stir)
    merge_adapter(mixture, tmp_path / "adapter", target, "source")
    assert verify_model(target, probe).max_difference < 1e-4
    assert verify_model(mixture, probe).max_difference > 1e-3


def test_bfloat16_is_asked_for_and_said(
    random_paths: dict[str, Path], tmp_path: Path, target: Path, stir: Stir
) -> None:
    probe = save(random_paths["qwen3"], SPECS["head"], tmp_path / "adapter", stir)
    merge_adapter(random_paths["qwen3"], tmp_path / "adapter", target, "bf16")
    assert {each.dtype for each in read_files(target).values()} == {torch.bfloat16}
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(target, dtype="auto").dtype == torch.bfloat16
    assert 1e-5 < verify_model(target, probe).max_difference < 0.05
    with safe_open(next(target.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def split(source: Path, folder: Path) -> Path:
    """The same model in several files with an index."""
    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(str(folder), max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_the_index_of_several_files_names_the_new_head(
    random_paths: dict[str, Path], tmp_path: Path, target: Path, stir: Stir
) -> None:
    path = split(random_paths["qwen3"], tmp_path / "split")
    probe = save(path, SPECS["head"], tmp_path / "adapter", stir)
    merge_adapter(path, tmp_path / "adapter", target, "source")
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = {name: file.name for file in target.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == files
    assert index["metadata"]["total_size"] == sum(
        each.nbytes for each in read_files(target).values()
    )
    assert verify_model(target, probe).max_difference < 1e-4


def test_two_copies_of_a_tied_matrix_in_the_files_are_changed_each_by_itself(
    random_paths: dict[str, Path], tmp_path: Path, target: Path, stir: Stir
) -> None:
    path = tmp_path / "doubled"
    shutil.copytree(random_paths["qwen3"], path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    probe = save(path, SPECS["both ends"], tmp_path / "adapter", stir)
    merge_adapter(path, tmp_path / "adapter", target, "source")
    assert verify_model(target, probe).max_difference < 1e-4


@pytest.mark.parametrize("precision", ["source", "bf16"])
def test_all_weights_are_restored_whole_from_a_difference(
    random_paths: dict[str, Path], tmp_path: Path, target: Path, stir: Stir, precision: str
) -> None:
    path = random_paths["qwen3"]
    save(path, LoraSpec(rank=0), tmp_path / "first", stir)
    probe = save(path, LoraSpec(rank=0), tmp_path / "second", stir, previous=tmp_path / "first")
    assert not list((tmp_path / "second").glob("*.safetensors"))
    restore_model(tmp_path / "second", target, precision)  # type: ignore[arg-type]
    limit = 1e-4 if precision == "source" else 0.1
    assert verify_model(target, probe).max_difference < limit


def test_an_adapter_folder_is_loaded_again_too(
    model_path: Path, tmp_path: Path, stir: Stir
) -> None:
    probe = save(model_path, SPECS["head"], tmp_path / "adapter", stir)
    assert verify_adapter(model_path, tmp_path / "adapter", probe).max_difference < 1e-4
    bent = Probe(tokens=probe.tokens, logprobs=tuple(each - 1 for each in probe.logprobs))
    found = verify_adapter(model_path, tmp_path / "adapter", bent)
    assert found.max_difference == pytest.approx(1, abs=1e-3)
    assert found.mean_difference == pytest.approx(1, abs=1e-3)


def test_an_adapter_of_another_base_is_refused(
    random_paths: dict[str, Path], tiny_path: Path, tmp_path: Path, target: Path, stir: Stir
) -> None:
    save(random_paths["llama"], SPECS["layers"], tmp_path / "adapter", stir)
    with pytest.raises(InvalidInput, match="is it of another base model"):
        merge_adapter(tiny_path, tmp_path / "adapter", target, "source")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 48)
    save_file(tensors, file)
    with pytest.raises(InvalidInput, match="have no place for base_model"):
        merge_adapter(random_paths["llama"], tmp_path / "adapter", target, "source")
    half = {name: each for name, each in tensors.items() if "lora_B" not in name}
    save_file(half, file)
    with pytest.raises(InvalidInput, match="without its other half"):
        merge_adapter(random_paths["llama"], tmp_path / "adapter", target, "source")
    file.write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="cannot be read as an adapter"):
        merge_adapter(random_paths["llama"], tmp_path / "adapter", target, "source")
