"""Every family with all weights trained, against transformers alone, and saved as it was stored."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.engine.rows import make_datum
from tests.training.engine.shapes import FAMILIES, save_model
from tests.training.engine.test_families import make_branches
from tests.training.engine.test_full import ADAM, find_full, load_full, read_gradients, train
from tests.training.engine.test_full import sum_loss as sum_plainly

DATA = [*make_branches(0), make_datum(33, seed=5)]


@pytest.fixture(params=FAMILIES)
def family_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_model(request.param, tmp_path / "model")


def test_gradients_of_all_weights_are_those_of_transformers(family_path: Path) -> None:
    engine = load_full(family_path)
    model = AutoModelForCausalLM.from_pretrained(family_path, dtype=torch.float32)
    loss = sum_plainly(model.train(False), DATA)
    loss.backward()
    assert train(engine, DATA).metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    gradients = read_gradients(engine)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        largest = parameter.grad.abs().max()
        torch.testing.assert_close(
            gradients[name] / largest, parameter.grad / largest, atol=1e-5, rtol=1e-4, msg=name
        )


def test_what_is_saved_is_read_by_transformers(family_path: Path, tmp_path: Path) -> None:
    engine = load_full(family_path)
    train(engine, DATA)
    engine.optim_step("run", ADAM)
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    ours = find_full(engine).tensors
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.detach(), ours[name]), name
