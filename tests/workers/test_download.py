"""A checkpoint, from the training worker over REST and a tar into peft: the same model."""

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from django.test import Client
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.workers.cast import TINY, Kind, Program, make_datum, make_device, read_output, take_turns
from webapp.accounts.models import Actor, Role
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


def load_peft(adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with warnings.catch_warnings():
        # peft reads a property that transformers has renamed, and warns of merging a tied head.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, adapter)


def open_client(run: Run) -> Client:
    assert run.created_by is not None
    actor = Actor(user=run.created_by, project=run.project, role=Role.OWNER)
    _, secret = create_key(actor=actor, name="laptop")
    return Client(headers={"X-API-Key": secret})


@torch.no_grad()
def score(model: PeftModel, seed: int) -> torch.Tensor:
    datum = make_datum(seed)
    logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    chosen: torch.Tensor = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    return chosen


@pytest.mark.parametrize("name", ["final", '../../../etc/\u00fcber "weights"'])
def test_an_adapter_that_was_downloaded_is_the_trained_one_in_peft(
    tmp_path: Path, name: str
) -> None:
    program = Program()
    program.create()
    program.train(range(3))
    after = program.learn(1, forward_only=True)
    program.send(Kind.SAVE_WEIGHTS, name=name)
    take_turns(make_device())
    checkpoint = Checkpoint.objects.get(run=program.run)
    place = (tmp_path / checkpoint.path).resolve()
    assert place.parent == tmp_path / "checkpoints" / program.run.pk
    answer = open_client(program.run).get(f"/rest/checkpoints/{checkpoint.pk}/download")
    with tarfile.open(fileobj=io.BytesIO(b"".join(answer))) as archive:
        archive.extractall(tmp_path / "laptop", filter="data")

    (folder,) = (tmp_path / "laptop").iterdir()
    model, ours = load_peft(folder), read_output(after).logprobs[0]
    assert np.abs(score(model, 1).numpy() - ours).max() < 1e-5
    with model.disable_adapter():
        assert np.abs(score(model, 1).numpy() - ours).max() > 1e-2
