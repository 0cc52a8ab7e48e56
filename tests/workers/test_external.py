"""Exported weights: what peft loads, encrypted for those who are named, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pyrage
import pytest

from tests.workers.cast import Kind, Program, make_device, read_answer, read_output, take_turns
from tests.workers.test_download import load_peft, score
from webapp.checkpoints.models import Checkpoint
from webapp.runs import queue
from webapp.runs.models import LogLine, Operation, Run

pytestmark = pytest.mark.django_db

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def train(**lora: bool) -> tuple[Program, Operation]:
    """A run with three steps; the operation scores what it has learnt."""
    program = Program()
    program.create(**lora)
    program.train(range(3))
    return program, program.learn(1, forward_only=True)


def list_files(checkpoint: Checkpoint, home: Path) -> list[str]:
    return sorted(path.name for path in (home / checkpoint.path).iterdir())


@pytest.mark.parametrize("head", [False, True])
def test_an_export_holds_what_peft_loads_and_nothing_of_ours(tmp_path: Path, head: bool) -> None:
    program, after = train(train_unembed=head)
    saved = program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="final")
    take_turns(make_device())
    checkpoint = Checkpoint.objects.get(run=program.run)
    told = read_answer(saved)
    assert told["path"] == f"tinker://{program.run.model_id}/external_weights/final"
    assert told["size_bytes"] == checkpoint.size_bytes > 0
    assert (checkpoint.kind, checkpoint.has_optimizer) == ("external", False)
    assert list_files(checkpoint, tmp_path) == FILES

    folder = tmp_path / checkpoint.path
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("tiny", 4)
    assert ("lm_head" in config["target_modules"]) is head
    ours = read_output(after).logprobs[0]
    assert np.abs(score(load_peft(folder), 1).numpy() - ours).max() < 1e-5


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({"train_unembed": True}, "input embedding"),
        ({"train_embed": True}, "output head"),
        ({}, None),
    ],
)
def test_weights_that_a_model_uses_twice_come_with_a_warning(
    tmp_path: Path, parts: dict[str, bool], changed: str | None
) -> None:
    """In the export, and on the page of the run."""
    program, _ = train(**parts)
    Run.objects.filter(pk=program.run.pk).update(lora=parts)
    program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="final")
    take_turns(make_device())
    card = " ".join((tmp_path / Checkpoint.objects.get().path / "README.md").read_text().split())
    run = Run.objects.get(pk=program.run.pk)
    assert "would change" in card if changed else "would change" not in card
    assert changed is None or f"would change the {changed} as well" in card
    lines = [line.text for line in LogLine.objects.filter(run=run)]
    assert [text for text in lines if "should not be merged" in text] == (
        [f"Its adapter should not be merged: {run.notes['merging']}."] if changed else []
    )


def test_an_encrypted_export_opens_for_each_recipient_and_nobody_else(tmp_path: Path) -> None:
    program, _ = train()
    ada, ben, eve = (pyrage.x25519.Identity.generate() for _ in range(3))
    program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="plain")
    recipients = [str(ada.to_public()), str(ben.to_public())]
    program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="secret", recipients=recipients)
    take_turns(make_device())
    plain, secret = (Checkpoint.objects.get(name=name) for name in ("plain", "secret"))
    assert (plain.is_encrypted, secret.is_encrypted) == (False, True)
    assert plain.digest == secret.digest
    assert list_files(secret, tmp_path) == [f"{file}.age" for file in FILES]
    for file in FILES[1:]:
        sealed = (tmp_path / secret.path / f"{file}.age").read_bytes()
        content = (tmp_path / plain.path / file).read_bytes()
        assert pyrage.decrypt(sealed, [ada]) == pyrage.decrypt(sealed, [ben]) == content
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(sealed, [eve])


def test_a_worker_that_dies_while_it_exports_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = train()
    export = program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="final")
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.checkpoint.shutil.rmtree", lambda *_, **__: None)
        patch.setattr("training.engine.checkpoint._replace_folder", die)
        with pytest.raises(KeyboardInterrupt):
            take_turns(make_device("w1"))
    folder = tmp_path / "checkpoints" / program.run.pk
    assert [path.name[:1] for path in folder.iterdir()] == ["."]
    assert not Checkpoint.objects.exists()
    queue.release_worker(worker="w1")
    take_turns(make_device("w1"))
    assert read_answer(export)["path"].endswith("/external_weights/final")
    (left,) = folder.iterdir()
    assert left == tmp_path / Checkpoint.objects.get().path


def die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_repeated_export_is_the_first_one() -> None:
    program, _ = train()
    export = program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="final")
    device = make_device()
    take_turns(device)
    first = read_answer(export)
    # As when its worker died between the checkpoint's row and the operation's end.
    Operation.objects.filter(pk=export.pk).update(status=Operation.Status.QUEUED)
    Run.objects.filter(pk=program.run.pk).update(done_seq=export.seq - 1)
    take_turns(device)
    assert read_answer(export) == first
    assert Checkpoint.objects.count() == 1


def test_an_export_cannot_be_loaded() -> None:
    program, _ = train()
    program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="final")
    device = make_device()
    take_turns(device)
    load = program.send(Kind.LOAD_WEIGHTS, checkpoint=Checkpoint.objects.get().pk, optimizer=False)
    take_turns(device)
    load.refresh_from_db()
    assert (load.status, load.error_category) == ("failed", "user")
