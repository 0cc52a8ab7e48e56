"""Exports, from a training run over REST into transformers and peft: proven, or not kept."""

import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from django.conf import settings
from django.test import Client
from django.utils.timezone import now
from transformers import AutoModelForCausalLM

from tests.workers.cast import TINY, Kind, Program, make_device, take_turns
from tests.workers.test_download import load_peft, open_client
from tests.workers.test_full_parameter import make_full, save_steps
from training.engine.verify import Agreement, verify_model
from webapp.accounts.models import Actor, Role
from webapp.checkpoints import exports as services
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import delete_checkpoint
from webapp.core.errors import NotFound, UserError
from workers import exports, tasks

pytestmark = pytest.mark.django_db
Status = Export.Status


def train(kind: str = Kind.SAVE_WEIGHTS_FOR_SAMPLER, **lora: Any) -> Checkpoint:
    program = Program()
    program.create(**lora)
    program.train(range(2))
    program.send(kind, name="final")
    take_turns(make_device())
    return Checkpoint.objects.select_related("run", "project").get(run=program.run)


def act_for(checkpoint: Checkpoint) -> Actor:
    user = checkpoint.run.created_by
    assert user is not None
    return Actor(user=user, project=checkpoint.project, role=Role.OWNER)


def ask(checkpoint: Checkpoint, kind: str = "merged", precision: str = "source") -> Export:
    actor = act_for(checkpoint)
    return services.request_export(
        actor=actor, checkpoint=checkpoint, kind=kind, precision=precision
    )


def make(export: Export) -> Export:
    tasks.export_checkpoint(export.pk)
    export.refresh_from_db()
    return export


def unpack(client: Client, export_id: str, folder: Path) -> Path:
    answer = client.get(f"/rest/exports/{export_id}/download")
    content = b"".join(answer)
    assert answer.headers["Content-Length"] == str(len(content))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


@torch.no_grad()
def score(model: Any, checkpoint: Checkpoint) -> list[float]:
    ids = torch.tensor(checkpoint.probe["tokens"])
    logits = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(1, ids[1:, None]).squeeze(1).tolist()  # type: ignore[no-any-return]


def list_files() -> list[Path]:
    return [path for path in (home() / "exports").rglob("*") if path.is_file()]


def home() -> Path:
    return Path(settings.HONE_HOME)


@pytest.mark.parametrize("kind", [Kind.SAVE_WEIGHTS_FOR_SAMPLER, Kind.SAVE_WEIGHTS])
def test_an_export_is_asked_for_made_proven_and_downloaded(tmp_path: Path, kind: str) -> None:
    checkpoint = train(kind, train_unembed=True)
    client = open_client(checkpoint.run)
    found = {}
    for wish in ("peft", "merged"):
        url = f"/rest/checkpoints/{checkpoint.pk}/exports"
        asked = client.post(url, {"kind": wish}, content_type="application/json")
        assert asked.status_code == 202
        assert asked.json()["status"] == "queued"
        export = make(Export.objects.get(pk=asked.json()["id"]))
        told = client.get(f"/rest/exports/{export.pk}").json()
        assert told["status"] == "ready", told
        assert told["mean_difference"] <= told["max_difference"]
        found[wish] = unpack(client, export.pk, tmp_path / wish)
        assert told["size_bytes"] == sum(file.stat().st_size for file in found[wish].iterdir())
    assert len(client.get(f"/rest/checkpoints/{checkpoint.pk}/exports").json()) == 2
    expected = checkpoint.probe["logprobs"]
    assert score(load_peft(found["peft"]), checkpoint) == pytest.approx(expected, abs=1e-4)
    config = json.loads((found["peft"] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    model = AutoModelForCausalLM.from_pretrained(found["merged"], dtype="auto")
    stored = AutoModelForCausalLM.from_pretrained(TINY, dtype="auto").dtype
    assert model.dtype == stored
    limit = 1e-4 if stored == torch.float32 else 0.1
    assert score(model.float(), checkpoint) == pytest.approx(expected, abs=limit)
    card = (found["merged"] / "README.md").read_text()
    assert "merged into it" in card
    assert checkpoint.pk in card


def test_the_same_again_is_the_same_and_a_second_message_is_free() -> None:
    checkpoint = train()
    export = make(ask(checkpoint))
    assert export.status == Status.READY
    ended = export.ended_at
    assert ask(checkpoint).pk == export.pk
    assert make(export).ended_at == ended
    assert ask(checkpoint, precision="bf16").pk != export.pk


def test_bfloat16_is_smaller_and_says_how_far_it_is() -> None:
    checkpoint = train()
    export = make(ask(checkpoint, precision="bf16"))
    assert export.status == Status.READY, export.error
    assert export.max_difference is not None
    assert 0 < export.max_difference < 0.2


def test_a_process_that_is_killed_in_the_middle_is_followed_by_one_that_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = ask(train())
    whole = verify_model

    def die(*_: Any) -> Agreement:
        raise SystemExit

    monkeypatch.setattr(exports, "verify_model", die)
    with pytest.raises(SystemExit):
        tasks.export_checkpoint(export.pk)
    export.refresh_from_db()
    assert export.status == Status.RUNNING
    Export.objects.update(created_at=now() - 2 * services.ANNOUNCED)
    sent: list[str] = []
    monkeypatch.setattr(services, "send_task", lambda _, pk: sent.append(pk))
    services.announce_exports()
    assert sent == [export.pk]
    monkeypatch.setattr(exports, "verify_model", whole)
    assert make(export).status == Status.READY
    assert {path.parent.name for path in list_files()} == {export.pk}


def test_a_process_that_ends_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    export = ask(train())
    lock = home() / "locks"
    lock.mkdir(exist_ok=True)
    (lock / export.pk).write_bytes(b"..." * 2)
    assert make(export).status == Status.FAILED
    assert "may be too large for this machine's memory" in export.error


@pytest.mark.parametrize("at", ["merge_adapter", "check_disk"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    export = ask(train())

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exports, at, fill)
    assert make(export).status == Status.FAILED
    assert "disk of the state folder is full" in export.error
    assert not list_files()
    monkeypatch.undo()
    again = ask(export.checkpoint)
    assert again.pk != export.pk


def damage(checkpoint: Checkpoint) -> None:
    folder = home() / checkpoint.path
    (folder / "adapter_model.safetensors").write_bytes(b"half")


def lie(checkpoint: Checkpoint) -> None:
    probe = checkpoint.probe
    probe["logprobs"] = [each - 1 for each in probe["logprobs"]]
    Checkpoint.objects.filter(pk=checkpoint.pk).update(probe=probe)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "cannot be read as an adapter"),
        (lie, "differs from what was trained by up to 1 nats on fixed tokens"),
    ],
)
@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_what_is_not_what_was_trained_is_not_kept(
    harm: Callable[[Checkpoint], None], words: str, kind: str
) -> None:
    checkpoint = train()
    export = ask(checkpoint, kind)
    harm(checkpoint)
    assert make(export).status == Status.FAILED
    assert words in export.error
    assert (export.max_difference is not None) is (harm is lie)
    assert not list_files()


def test_files_go_with_the_export_and_with_the_checkpoint() -> None:
    checkpoint = train()
    actor, first = act_for(checkpoint), make(ask(checkpoint))
    second = make(ask(checkpoint, "peft"))
    services.delete_export(actor=actor, export=first)
    assert {path.parent.name for path in list_files()} == {second.pk}
    delete_checkpoint(actor=actor, checkpoint=checkpoint)
    assert not list_files()
    checkpoint.refresh_from_db()
    with pytest.raises(NotFound):
        ask(checkpoint)


def test_one_that_was_deleted_while_it_was_made_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = ask(train())
    whole = verify_model

    def verify(*args: Any) -> Agreement:
        services.delete_export(actor=act_for(export.checkpoint), export=export)
        export.pk = pk
        return whole(*args)

    pk = export.pk
    monkeypatch.setattr(exports, "verify_model", verify)
    tasks.export_checkpoint(pk)
    assert not Export.objects.exists()
    assert not list_files()


def test_all_weights_leave_as_a_whole_model_and_as_no_adapter(tmp_path: Path) -> None:
    program = make_full()
    save_steps(program, 2)
    checkpoint = Checkpoint.objects.select_related("run", "project").latest("seq")
    assert checkpoint.is_delta
    with pytest.raises(UserError, match="holds all weights of a model, which is no adapter"):
        ask(checkpoint, "peft")
    export = make(ask(checkpoint))
    assert export.status == Status.READY, export.error
    assert export.digest == checkpoint.digest
    folder = unpack(open_client(checkpoint.run), export.pk, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert score(model, checkpoint) == pytest.approx(checkpoint.probe["logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "precision", "words"),
    [
        ("gguf", "source", "choose peft or merged"),
        ("merged", "int4", "choose source or bf16"),
        ("peft", "bf16", "leave out precision"),
    ],
)
def test_what_is_not_offered_is_refused(kind: str, precision: str, words: str) -> None:
    checkpoint = train()
    with pytest.raises(UserError, match=words):
        ask(checkpoint, kind, precision)


def test_a_save_that_asks_for_a_merged_model_does_not_wait_for_it() -> None:
    program = Program()
    program.create()
    program.train(range(1))
    save = program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="m", merge="bf16")
    take_turns(make_device())
    save.refresh_from_db()
    assert save.status == "done"
    export = Export.objects.get()
    assert (export.kind, export.precision, export.status) == ("merged", "bf16", "queued")
    assert make(export).status == Status.READY


def test_two_at_once_in_one_process_are_made_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = train()
    first, second = ask(checkpoint), ask(checkpoint, "peft")
    sent: list[tuple[str, float]] = []

    def send(_: str, pk: str, *, delay_seconds: float) -> None:
        sent.append((pk, delay_seconds))

    def verify(*args: Any) -> Agreement:
        tasks.export_checkpoint(second.pk)  # as another thread would meanwhile
        return verify_model(*args)

    monkeypatch.setattr(exports, "send_task", send)
    monkeypatch.setattr(exports, "verify_model", verify)
    assert make(first).status == Status.READY
    second.refresh_from_db()
    assert second.status == Status.QUEUED
    assert sent == [(second.pk, exports.AGAIN_SECONDS)]
    assert make(second).status == Status.READY
