"""Checkpoints of full-parameter runs: loadable folders, exact resume, deltas, refused damage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.engine.rows import make_data
from tests.training.engine.test_full import (
    ADAM,
    FULL,
    find_full,
    load_full,
    load_plainly,
    train,
)
from training.deltas import MAX_DELTAS, restore_folder
from training.engine.core import Engine
from training.errors import InvalidInput
from training.manifest import DELTA_FILE, MASTER_FILE, MOMENTS_FILE, read_manifest
from training.model_files import INDEX_FILE, WEIGHTS_FILE
from training.types import AdamParams, LoraSpec

RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


def make_steps(engine: Engine, count: int, *, seed: int = 0, adam: AdamParams = ADAM) -> None:
    for step in range(count):
        train(engine, make_data(9, 21, vocab_size=engine.vocab_size, seed=seed + step))
        engine.optim_step("run", adam)


def list_files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def read_bits(folder: Path) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }


def restore(folder: Path) -> Path:
    target = folder.with_name(f"{folder.name}-whole")
    target.mkdir()
    restore_folder(folder, target)
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_is_a_folder_that_loaders_read(
    tiny_path: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    engine = load_full(tiny_path, dtype=dtype)
    make_steps(engine, 2)
    saved = engine.save_weights("run", tmp_path / "saved", optimizer=False)
    assert (saved.type, saved.ratio, saved.has_optimizer) == ("base", None, False)
    assert list_files(tmp_path / "saved") == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        WEIGHTS_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    ours = find_full(engine).tensors
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.detach(), ours[name].to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_is_of_the_weights_that_are_stored(
    tiny_path: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    engine = load_full(tiny_path, dtype=dtype)
    make_steps(engine, 2)
    before = find_full(engine).values.clone()
    saved = engine.save_weights("run", tmp_path / "saved", optimizer=False)
    assert torch.equal(find_full(engine).values, before)
    tokens = torch.tensor(saved.probe.tokens)
    logits = load_plainly(tmp_path / "saved", dtype)(input_ids=tokens[None]).logits[0, :-1].float()
    theirs = logits.log_softmax(-1).gather(1, tokens[1:, None]).squeeze(1).detach()
    atol = 1e-4 if dtype == torch.float32 else 0.1
    np.testing.assert_allclose(saved.probe.logprobs, theirs.numpy(), atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_exactly_as_if_it_had_not_stopped(
    model_path: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    engine = load_full(model_path, dtype=dtype)
    make_steps(engine, 2)
    saved = engine.save_weights("run", tmp_path / "saved", optimizer=True)
    assert saved.has_optimizer
    assert read_manifest(tmp_path / "saved").spec.is_full
    make_steps(engine, 2, seed=2)
    again = Engine.load(model_path, dtype=dtype)
    again.load_weights("run", tmp_path / "saved", optimizer=True)
    assert again.runs == ("run",)
    make_steps(again, 2, seed=2)
    assert torch.equal(find_full(again).values, find_full(engine).values)
    for key, moment in engine.optimizers["run"].moments.items():
        assert torch.equal(again.optimizers["run"].moments[key], moment)
    data = make_data(9, vocab_size=engine.vocab_size)
    np.testing.assert_array_equal(train(again, data).logprobs[0], train(engine, data).logprobs[0])


def test_a_master_lies_beside_weights_that_are_stored_shorter(
    tiny_path: Path, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    for path, has_master in ((tiny_path, True), (random_paths["llama"], False)):
        engine = load_full(path)
        engine.save_weights("run", tmp_path / path.name, optimizer=True)
        files = list_files(tmp_path / path.name)
        assert (MASTER_FILE in files, MOMENTS_FILE in files) == (has_master, True)
        assert load_plainly(tmp_path / path.name).num_parameters() == engine.num_parameters


def test_loading_without_the_optimizer_makes_a_fresh_one(tiny_path: Path, tmp_path: Path) -> None:
    engine = load_full(tiny_path)
    make_steps(engine, 2)
    values = find_full(engine).values.clone()
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    make_steps(engine, 1, seed=5)
    train(engine, make_data(9, vocab_size=engine.vocab_size))
    engine.load_weights("run", tmp_path / "saved", optimizer=False)
    assert torch.equal(find_full(engine).values, values)
    assert engine.optimizers["run"].num_steps == 0
    assert not any(each.any() for each in engine.optimizers["run"].moments.values())
    assert not engine.has_gradients("run")
    assert not find_full(engine).gradients.any()


def test_weights_for_a_sampler_bring_no_optimizer(tiny_path: Path, tmp_path: Path) -> None:
    engine = load_full(tiny_path)
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    with pytest.raises(InvalidInput, match="saved holds no optimizer state"):
        engine.load_weights("run", tmp_path / "saved", optimizer=True)
    engine.load_weights("run", tmp_path / "saved", optimizer=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_delta_comes_back_to_the_bit(
    model_path: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    engine = load_full(model_path, dtype=dtype)
    engine.save_weights("run", tmp_path / "first", optimizer=False)
    folders = [tmp_path / "first"]
    for number in range(2):
        make_steps(engine, 1, seed=number)
        folder = tmp_path / f"delta-{number}"
        saved = engine.save_weights("run", folder, optimizer=False, previous=folders[-1])
        engine.save_weights("run", tmp_path / f"whole-{number}", optimizer=False)
        assert saved.type == "delta"
        assert saved.digest == read_manifest(tmp_path / f"whole-{number}").digest
        assert list_files(folder) == ["manifest.json", DELTA_FILE]
        folders.append(folder)
    for number in range(2):
        target, whole = restore(tmp_path / f"delta-{number}"), tmp_path / f"whole-{number}"
        assert read_bits(target) == read_bits(whole)
        assert (target / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()
        assert set(list_files(whole)) == {*list_files(target), "manifest.json"}


def test_a_small_step_makes_a_small_delta_and_says_so(tiny_path: Path, tmp_path: Path) -> None:
    engine = load_full(tiny_path)
    engine.save_weights("run", tmp_path / "base", optimizer=False)
    ratios = []
    for number, learning_rate in enumerate((0.0, 1e-6, 1e-3)):
        make_steps(engine, 1, adam=AdamParams(learning_rate=learning_rate))
        folder = tmp_path / f"delta-{number}"
        previous = tmp_path / "base"
        saved = engine.save_weights("run", folder, optimizer=False, previous=previous)
        assert saved.ratio is not None
        assert saved.ratio == read_manifest(folder).ratio
        size = (folder / DELTA_FILE).stat().st_size
        assert saved.ratio == size / (tmp_path / "base" / WEIGHTS_FILE).stat().st_size
        ratios.append(saved.ratio)
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.001
    assert ratios[1] < 0.2
    assert ratios[2] < 0.9


def test_a_delta_loads_as_weights_do(tiny_path: Path, tmp_path: Path) -> None:
    engine = load_full(tiny_path, dtype=torch.bfloat16)
    engine.save_weights("run", tmp_path / "base", optimizer=False)
    make_steps(engine, 1)
    engine.save_weights("run", tmp_path / "delta", optimizer=False, previous=tmp_path / "base")
    again = Engine.load(tiny_path, dtype=torch.bfloat16)
    again.load_weights("run", tmp_path / "delta", optimizer=False)
    rounded = find_full(engine).values.bfloat16().float()
    assert torch.equal(find_full(again).values, rounded)
    with pytest.raises(InvalidInput, match="delta holds no optimizer state"):
        again.load_weights("run", tmp_path / "delta", optimizer=True)


def test_a_chain_of_deltas_has_an_end(random_paths: dict[str, Path], tmp_path: Path) -> None:
    engine = load_full(random_paths["llama"])
    previous = tmp_path / "base"
    engine.save_weights("run", previous, optimizer=False)
    for number in range(MAX_DELTAS):
        folder = tmp_path / f"delta-{number}"
        engine.save_weights("run", folder, optimizer=False, previous=previous)
        previous = folder
    with pytest.raises(InvalidInput, match=f"the last of {MAX_DELTAS} differences in a row"):
        engine.save_weights("run", tmp_path / "more", optimizer=False, previous=previous)
    assert not (tmp_path / "more").exists()


def test_a_model_in_several_files_keeps_them(tiny_path: Path, tmp_path: Path) -> None:
    model = load_plainly(tiny_path)
    model.save_pretrained(tmp_path / "base", max_shard_size="2MB")
    engine = load_full(tmp_path / "base")
    make_steps(engine, 1)
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    names = [name for name in list_files(tmp_path / "saved") if name.endswith(".safetensors")]
    assert len(names) > 1
    assert (tmp_path / "saved" / INDEX_FILE).is_file()
    loaded = load_plainly(tmp_path / "saved")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.detach(), find_full(engine).tensors[name])


def test_what_is_saved_is_a_base_model_itself(tiny_path: Path, tmp_path: Path) -> None:
    engine = load_full(tiny_path)
    make_steps(engine, 2)
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    data = make_data(9, vocab_size=engine.vocab_size)
    engine.load_weights("run", tmp_path / "saved", optimizer=False)
    on_it = Engine.load(tmp_path / "saved")
    assert on_it.base_digest != engine.base_digest
    on_it.create_adapter("run", LoraSpec(rank=4))
    np.testing.assert_allclose(
        train(on_it, data, forward_only=True).logprobs[0],
        train(engine, data, forward_only=True).logprobs[0],
        atol=0.02,  # the folder's weights are in bfloat16, the run's are not
    )


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", [WEIGHTS_FILE, MASTER_FILE, MOMENTS_FILE, "tokenizer.json"])
@pytest.mark.parametrize("harm", [flip_last_byte, Path.unlink])
def test_damage_is_refused_by_name_and_changes_nothing(
    tiny_path: Path, tmp_path: Path, file: str, harm: Callable[[Path], None]
) -> None:
    engine = load_full(tiny_path)
    make_steps(engine, 1)
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    make_steps(engine, 1)
    before = find_full(engine).values.clone()
    harm(tmp_path / "saved" / file)
    with pytest.raises(InvalidInput, match=f"saved is damaged: {file}"):
        engine.load_weights("run", tmp_path / "saved", optimizer=True)
    assert torch.equal(find_full(engine).values, before)
    assert engine.optimizers["run"].num_steps == 2


def test_adapters_and_whole_models_do_not_stand_for_each_other(
    tiny_path: Path, tmp_path: Path
) -> None:
    full, lora = load_full(tiny_path), Engine.load(tiny_path)
    lora.create_adapter("run", LoraSpec(rank=2))
    full.save_weights("run", tmp_path / "whole", optimizer=True)
    lora.save_weights("run", tmp_path / "adapter", optimizer=True)
    with pytest.raises(InvalidInput, match="whole holds all weights of a model"):
        lora.load_weights("run", tmp_path / "whole", optimizer=True)
    with pytest.raises(InvalidInput, match="adapter holds an adapter"):
        full.load_weights("run", tmp_path / "adapter", optimizer=True)
    with pytest.raises(InvalidInput, match="adapter holds an adapter"):
        full.save_weights("run", tmp_path / "d", optimizer=False, previous=tmp_path / "adapter")


def test_a_folder_of_another_base_is_refused(
    tiny_path: Path, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    load_full(random_paths["llama"]).save_weights("run", tmp_path / "saved", optimizer=True)
    engine = load_full(tiny_path)
    with pytest.raises(InvalidInput, match="trained on another base model"):
        engine.load_weights("run", tmp_path / "saved", optimizer=True)
    with pytest.raises(InvalidInput, match="saved holds other layers"):
        engine.save_weights("run", tmp_path / "d", optimizer=False, previous=tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: {f"other.{name}": each for name, each in tensors.items()}, "other names"),
        (
            lambda tensors: {name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()},
            "as F8_E4M3",
        ),
    ],
)
def test_files_that_the_weights_could_not_be_written_to_are_refused(
    tiny_path: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    text: str,
) -> None:
    engine = Engine.load(tiny_path)
    model = load_plainly(tiny_path)
    model.save_pretrained(tmp_path / "base")
    engine.path = tmp_path / "base"
    save_file(change(load_file(tiny_path / WEIGHTS_FILE)), tmp_path / "base" / WEIGHTS_FILE)
    with pytest.raises(InvalidInput, match=text):
        engine.create_adapter("run", FULL)
    assert not engine.runs
    engine.create_adapter("run", LoraSpec(rank=2))


@pytest.mark.parametrize(
    "recipients", [[], ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]]
)
def test_an_export_is_a_whole_model_with_its_card(
    tiny_path: Path, tmp_path: Path, recipients: list[str]
) -> None:
    engine = load_full(tiny_path)
    make_steps(engine, 1)
    exported = engine.export_weights(
        "run", tmp_path / "out", base_name="tiny", card="# all weights", recipients=recipients
    )
    assert exported.type == "base"
    suffix = ".age" if recipients else ""
    files = list_files(tmp_path / "out")
    assert {f"README.md{suffix}", f"config.json{suffix}", f"{WEIGHTS_FILE}{suffix}"} <= set(files)
    assert "manifest.json" not in files
    if not recipients:
        assert (tmp_path / "out" / "README.md").read_text() == "# all weights"
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
        assert load_plainly(tmp_path / "out").num_parameters() == engine.num_parameters
    assert not engine.shares_trained_head("run")
