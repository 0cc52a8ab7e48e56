"""Saving and loading: exact resumption, and folders that are not complete are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.errors import InvalidInput
from training.manifest import read_manifest
from training.types import AdamParams, ForwardBackward, LoraSpec, SavedWeights

ADAM = AdamParams(learning_rate=1e-2, weight_decay=0.01)


def train(engine: Engine, *seeds: int, run: str = "run") -> None:
    for seed in seeds:
        engine.forward_backward({run: ForwardBackward(data=make_data(8, 19, seed=seed))})
        engine.optim_step(run, ADAM)


def read_values(engine: Engine, run: str = "run") -> torch.Tensor:
    return engine.adapters.by_run[run].values.clone()


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> SavedWeights:
    """Two steps of training, saved with the optimizer under `saved`."""
    train(engine, 0, 1)
    return engine.save_weights("run", tmp_path / "saved", optimizer=True)


def test_save_load_step_is_step(
    engine: Engine, saved: SavedWeights, tmp_path: Path, random_paths: dict[str, Path]
) -> None:
    train(engine, 2, 3)
    fresh = Engine.load(random_paths["llama"])
    fresh.load_weights("other", tmp_path / "saved", optimizer=True)
    train(fresh, 2, 3, run="other")
    assert torch.equal(read_values(fresh, "other"), read_values(engine))
    assert fresh.optimizers["other"].num_steps == 4


def test_loading_without_the_optimizer_takes_the_weights_and_forgets_the_moments(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    values = read_values(engine)
    train(engine, 2)
    engine.load_weights("run", tmp_path / "saved", optimizer=False)
    assert torch.equal(read_values(engine), values)
    assert engine.optimizers["run"].num_steps == 0
    assert not engine.optimizers["run"].mean.any()


def test_loading_drops_gradients(engine: Engine, saved: SavedWeights, tmp_path: Path) -> None:
    engine.forward_backward({"run": ForwardBackward(data=make_data(8))})
    engine.load_weights("run", tmp_path / "saved", optimizer=True)
    assert not engine.has_gradients("run")
    assert not engine.adapters.by_run["run"].gradients.any()


def test_a_loaded_run_has_the_spec_of_the_folder(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    engine.create_adapter("run", LoraSpec(rank=9, train_mlp=False))
    engine.load_weights("run", tmp_path / "saved", optimizer=True)
    assert engine.adapters.by_run["run"].spec == LoraSpec(rank=4, seed=1)


def test_the_manifest_says_what_was_saved(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    manifest = read_manifest(tmp_path / "saved")
    assert manifest.digest == saved.digest
    assert manifest.probe == saved.probe
    assert manifest.has_optimizer
    assert saved.has_optimizer
    assert manifest.step == 2
    assert manifest.base_digest == engine.base_digest
    assert manifest.spec == LoraSpec(rank=4, seed=1)
    files = list((tmp_path / "saved").iterdir())
    assert saved.size_bytes == sum(file.stat().st_size for file in files)
    assert list(tmp_path.iterdir()) == [tmp_path / "saved"]


def test_the_probe_is_the_same_after_loading_and_another_after_training(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    assert len(saved.probe.tokens) == 24
    assert len(saved.probe.logprobs) == 23
    train(engine, 2)
    assert engine.probe("run") != saved.probe
    engine.load_weights("run", tmp_path / "saved", optimizer=False)
    assert engine.probe("run") == saved.probe


def test_the_digest_is_of_the_weights_alone(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    again = engine.save_weights("run", tmp_path / "again", optimizer=False)
    assert again.digest == saved.digest
    assert not again.has_optimizer
    train(engine, 2)
    assert engine.save_weights("run", tmp_path / "later", optimizer=False).digest != saved.digest


def test_saving_leaves_gradients_alone(engine: Engine, tmp_path: Path) -> None:
    engine.forward_backward({"run": ForwardBackward(data=make_data(8))})
    gradients = engine.adapters.by_run["run"].gradients.clone()
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    assert torch.equal(engine.adapters.by_run["run"].gradients, gradients)
    assert engine.has_gradients("run")


def test_saving_over_a_folder_replaces_it_whole(
    engine: Engine, saved: SavedWeights, tmp_path: Path
) -> None:
    train(engine, 2)
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    assert read_manifest(tmp_path / "saved").step == 3
    assert not (tmp_path / "saved" / "optimizer.safetensors").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "saved"]


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_manifest(key: str, value: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("manifest.json", Path.unlink, "no complete checkpoint: manifest.json is missing"),
        ("manifest.json", cut_short, "damaged: manifest.json cannot be read"),
        ("manifest.json", change_manifest("format", 9), "checkpoint format 9"),
        ("manifest.json", change_manifest("spec", {"rank": 4, "x": 1}), "cannot be read"),
        ("manifest.json", change_manifest("base_digest", "0"), "trained on another base model"),
        ("adapter_model.safetensors", flip_last_byte, "does not have the digest"),
        ("adapter_model.safetensors", cut_short, "adapter_model.safetensors cannot be read"),
        ("adapter_model.safetensors", Path.unlink, "adapter_model.safetensors is missing"),
        ("optimizer.safetensors", flip_last_byte, "does not have the digest"),
        ("optimizer.safetensors", Path.unlink, "optimizer.safetensors is missing"),
    ],
)
def test_a_torn_checkpoint_is_refused_and_the_run_stays_as_it_was(
    engine: Engine,
    saved: SavedWeights,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    text: str,
) -> None:
    train(engine, 2)
    values = read_values(engine)
    damage(tmp_path / "saved" / name)
    with pytest.raises(InvalidInput, match=text):
        engine.load_weights("run", tmp_path / "saved", optimizer=True)
    assert torch.equal(read_values(engine), values)
    assert engine.optimizers["run"].num_steps == 3


def test_a_folder_without_moments_is_refused_where_they_are_wanted(
    engine: Engine, tmp_path: Path
) -> None:
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    with pytest.raises(InvalidInput, match="holds no optimizer state"):
        engine.load_weights("run", tmp_path / "saved", optimizer=True)
