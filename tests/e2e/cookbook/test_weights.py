"""Weights on their way out, stock: what is downloaded, merged and adapted scores as the trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.e2e.cookbook.cookbook import Cookbook, Outcome
from tests.e2e.cookbook.hub import CHAT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # peft asks transformers for it by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
IDS = [1, 87, 300, 12, 640, 1500, 9, 33, 2]


def score(model: Any) -> list[float]:
    """The log-probability of each token after the first."""
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logprobs = model(ids).logits.log_softmax(-1)
    told: list[float] = logprobs[0, :-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    return told


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_exported_weights_score_as_the_trainer_does(cookbook: Cookbook, boxed: Outcome) -> None:
    folder = cookbook.make_folder()
    told = cookbook.run(
        "weights.py",
        f"tinker_path={boxed.state_path}",
        f"model_name={CHAT}",
        f"folder={folder}",
        f"ids={IDS}",
    )
    trained = json.loads(told.splitlines()[-1])
    base = load(cookbook.hub / CHAT)
    assert score(base) != pytest.approx(trained, abs=0.1)
    assert score(PeftModel.from_pretrained(base, folder / "peft")) == pytest.approx(
        trained, abs=1e-3
    )
    # Its tensors keep the type of the base model's files, which is bfloat16.
    assert score(load(folder / "merged")) == pytest.approx(trained, rel=0.02, abs=0.05)
    # The encrypted copy that the download made is gone again.
    assert "external_weights/download" not in cookbook.list_checkpoints(boxed)
