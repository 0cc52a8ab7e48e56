"""Products with frozen weights: the fast way gives what PyTorch's own gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from training.engine import products
from training.engine.core import Engine
from training.engine.products import LEAST_ELEMENTS, is_suited, multiply, pull_back
from training.types import Datum, FloatArray, ForwardBackward, ForwardBackwardOutput, LoraSpec

WIDE = (320, 256)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(WIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_rows", [1, 3, 64, 777])
def test_a_wide_layer_gives_what_pytorch_gives(weight: torch.Tensor, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    rows_NI = torch.randn((num_rows, WIDE[1]), generator=generator)
    grad_NO = torch.randn((num_rows, WIDE[0]), generator=generator)
    bias_O = torch.randn(WIDE[0], generator=generator)
    expected = nn.functional.linear(rows_NI, weight, bias_O)
    torch.testing.assert_close(multiply(rows_NI, weight, bias_O), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pull_back(grad_NO, weight), grad_NO @ weight, rtol=1e-5, atol=1e-4)


def test_rows_that_do_not_lie_together_are_multiplied_alike(weight: torch.Tensor) -> None:
    rows_NI = torch.randn((WIDE[1], 50), generator=torch.Generator().manual_seed(2)).T
    expected = rows_NI @ weight.T
    torch.testing.assert_close(multiply(rows_NI, weight), expected, rtol=1e-5, atol=1e-4)


def test_the_same_rows_give_the_same_bits(weight: torch.Tensor) -> None:
    rows_NI = torch.randn((333, WIDE[1]), generator=torch.Generator().manual_seed(3))
    assert torch.equal(multiply(rows_NI, weight), multiply(rows_NI.clone(), weight))


def test_small_layers_other_types_and_no_rows_go_the_usual_way(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "HAS_ONEDNN", True)
    rows_NI = torch.ones(5, WIDE[1])
    assert is_suited(rows_NI, weight)
    assert not is_suited(rows_NI[:0], weight)
    assert not is_suited(rows_NI.bfloat16(), weight.bfloat16())
    assert not is_suited(rows_NI, torch.ones(LEAST_ELEMENTS // 256 - 1, 256))
    assert multiply(rows_NI[:0], weight).shape == (0, WIDE[0])


def test_a_wide_model_has_the_same_loss_and_gradients_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 320, "vocab_size": 300}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(tmp_path)
    fast = compute(tmp_path)
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    usual = compute(tmp_path)
    np.testing.assert_allclose(fast[0], usual[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast[1], usual[1], rtol=1e-5, atol=1e-5)


def compute(folder: Path) -> tuple[FloatArray, torch.Tensor]:
    """Log-probabilities and gradients of one datum."""
    engine = Engine.load(folder)
    engine.create_adapter("run", LoraSpec(rank=4))
    tokens = np.random.default_rng(0).integers(0, 300, 41)
    datum = Datum(tokens=tokens[:-1], inputs={"target_tokens": tokens[1:]})
    output = engine.forward_backward({"run": ForwardBackward(data=[datum])})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output.logprobs[0], engine.adapters.by_run["run"].gradients.clone()
