"""The SDK's own command line: runs, models, checkpoints, and downloads that peft loads."""

import json
from pathlib import Path
from typing import Any

import pyrage
import pytest
import torch

from tests.e2e.live import Live
from tests.workers.test_download import load_peft

pytestmark = pytest.mark.e2e

KEY = pyrage.x25519.Identity.generate()
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def trained(live: Live) -> Any:
    return live.run("weights.py", str(KEY.to_public()), RUN_NAME="for the command line")


def read(live: Live, *arguments: str) -> Any:
    """What a command prints for programs."""
    return json.loads(live.type_tinker("--format", "json", *arguments))


def list_checkpoints(live: Live, run_id: str) -> dict[str, Any]:
    listed = read(live, "checkpoint", "list", "--run-id", run_id)["checkpoints"]
    return {each["tinker_path"]: each for each in listed}


@torch.no_grad()
def score(folder: Path, trained: Any) -> list[float]:
    logits = load_peft(folder)(input_ids=torch.tensor([trained["tokens"]])).logits[0]
    targets = torch.tensor(trained["targets"])
    chosen: list[float] = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).tolist()
    return chosen


def test_models_are_listed(live: Live) -> None:
    (model,) = read(live, "model", "list", "TINY")["models"]
    assert model["model_name"] == "tiny-chatml-1m"
    assert (model["trainable"], model["sampleable"]) == (True, True)
    assert "tiny-chatml-1m" in live.type_tinker("model", "list")


def test_runs_are_listed_and_described(live: Live, trained: Any) -> None:
    runs = {run["training_run_id"]: run for run in read(live, "run", "list", "--limit=0")["runs"]}
    assert runs[trained["run_id"]]["base_model"] == "tiny-chatml-1m"
    columns = "id,model,owner,lora,updated,status,checkpoint,checkpoint_time"
    assert "Rank 8" in live.type_tinker("run", "list", "--columns", columns, "--limit", "1")
    run = read(live, "run", "info", trained["run_id"])
    assert (run["lora_rank"], run["is_lora"], run["corrupted"]) == (8, True, False)
    assert run["last_checkpoint"]["tinker_path"] == trained["spare"]
    assert run["last_sampler_checkpoint"]["tinker_path"] == trained["sampler"]
    assert trained["run_id"] in live.type_tinker("run", "info", trained["run_id"])


def test_a_run_that_is_none_is_told_in_a_sentence(live: Live) -> None:
    error = live.type_tinker("run", "info", "ses-none:train:0", fails=True)
    assert "There is no model ses-none:train:0" in error


def test_checkpoints_are_listed_and_described(live: Live, trained: Any) -> None:
    listed = list_checkpoints(live, trained["run_id"])
    kinds = {path: each["checkpoint_type"] for path, each in listed.items()}
    assert kinds == {
        trained["saved"]: "training",
        trained["spare"]: "training",
        trained["sampler"]: "sampler",
        trained["plain"]: "external",
        trained["secret"]: "external",
    }
    assert listed[trained["saved"]]["user_metadata"] == {"note": "best"}
    assert listed[trained["secret"]]["size_bytes"] > listed[trained["plain"]]["size_bytes"] > 0
    everything = read(live, "checkpoint", "list", "--limit=0")["checkpoints"]
    assert listed.keys() <= {each["tinker_path"] for each in everything}
    assert "external_weights/hf" in live.type_tinker("checkpoint", "list")
    info = read(live, "checkpoint", "info", trained["plain"])
    assert (info["checkpoint_id"], info["lora_rank"]) == ("external_weights/hf", 8)
    assert info["expires_at"] is None
    assert "Never" in live.type_tinker("checkpoint", "info", trained["saved"])


def test_checkpoints_are_published_and_given_a_lifetime(live: Live, trained: Any) -> None:
    path = trained["saved"]
    live.type_tinker("checkpoint", "publish", path)
    live.type_tinker("checkpoint", "set-ttl", path, "--ttl", "7200")
    info = read(live, "checkpoint", "info", path)
    assert (info["public"], info["expires_at"] is not None) == (True, True)
    live.type_tinker("checkpoint", "unpublish", path)
    live.type_tinker("checkpoint", "set-ttl", path, "--remove")
    info = read(live, "checkpoint", "info", path)
    assert (info["public"], info["expires_at"]) == (False, None)
    error = live.type_tinker("checkpoint", "set-ttl", path, "--ttl", "60", fails=True)
    assert "a whole number from 3600" in error


@pytest.mark.parametrize("kind", ["plain", "saved"])
def test_what_is_downloaded_is_what_was_trained(
    live: Live, trained: Any, tmp_path: Path, kind: str
) -> None:
    path = trained[kind]
    told = read(live, "checkpoint", "download", path, "--output", str(tmp_path))
    folder = Path(told["destination"])
    assert folder.parent == tmp_path
    assert {file.name for file in folder.iterdir()} == FILES
    assert told["file_size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert score(folder, trained) == pytest.approx(trained["logprobs"], abs=1e-4)
    again = ("checkpoint", "download", path, "--output", str(tmp_path))
    assert "already exists" in live.type_tinker(*again, fails=True)
    assert "Downloaded to" in live.type_tinker(*again, "--force")


def test_a_download_leaves_no_export_behind(live: Live, trained: Any, tmp_path: Path) -> None:
    live.type_tinker("checkpoint", "download", trained["spare"], "--output", str(tmp_path))
    everything = read(live, "checkpoint", "list", "--limit=0")["checkpoints"]
    ids = {each["checkpoint_id"] for each in everything}
    assert "external_weights/hf" in ids
    assert "external_weights/download" not in ids


def test_an_encrypted_download_opens_with_its_key(live: Live, trained: Any, tmp_path: Path) -> None:
    told = read(live, "checkpoint", "download", trained["secret"], "--output", str(tmp_path))
    sealed = list(Path(told["destination"]).iterdir())
    assert {file.name for file in sealed} == {f"{name}.age" for name in FILES}
    for file in sealed:
        pyrage.decrypt_file(str(file), str(file.with_suffix("")), [KEY])
    assert score(Path(told["destination"]), trained) == pytest.approx(trained["logprobs"], abs=1e-4)


def test_sampler_weights_and_what_is_not_there_are_not_downloaded(
    live: Live, trained: Any, tmp_path: Path
) -> None:
    output = ("--output", str(tmp_path))
    error = live.type_tinker("checkpoint", "download", trained["sampler"], *output, fails=True)
    assert "cannot be downloaded" in error
    absent = trained["plain"].replace("/hf", "/none")
    error = live.type_tinker("checkpoint", "download", absent, *output, fails=True)
    assert f"There is no checkpoint {absent}" in error
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_deleted_by_path_and_by_run(live: Live) -> None:
    trained = live.run("weights.py", str(KEY.to_public()))
    paths = (trained["saved"], trained["sampler"])
    assert read(live, "checkpoint", "delete", *paths, "--yes")["deleted_count"] == 2
    absent = read(live, "checkpoint", "delete", trained["saved"], "--yes")
    assert "There is no checkpoint" in absent["failed"][0]["error"]
    left = {trained["spare"], trained["plain"], trained["secret"]}
    assert list_checkpoints(live, trained["run_id"]).keys() == left
    exports = ("--run-id", trained["run_id"], "--type", "external_weights")
    assert read(live, "checkpoint", "delete", *exports, "--yes")["deleted_count"] == 2
    assert list_checkpoints(live, trained["run_id"]).keys() == {trained["spare"]}
