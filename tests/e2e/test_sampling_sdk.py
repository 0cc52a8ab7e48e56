"""Everything that the unmodified SDK may ask of a sampling client, against transformers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.e2e.live import Live

pytestmark = pytest.mark.e2e

TINY = Path(__file__).parents[1] / "assets" / "tiny-chatml-1m"


@pytest.fixture(scope="module")
def report(live: Live) -> dict[str, Any]:
    answers: dict[str, Any] = live.run("scores.py")
    return answers


@pytest.fixture(scope="module")
def logprobs(report: dict[str, Any]) -> torch.Tensor:
    """(P - 1, V): row i speaks of the prompt's token i + 1; the last is of the first sample."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([report["tokens"]])).logits
    return logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def own(report: dict[str, Any], logprobs: torch.Tensor) -> list[float]:
    """Of the prompt's tokens but the first."""
    tokens = report["tokens"][1:]
    found: list[float] = logprobs[torch.arange(len(tokens)), tokens].tolist()
    return found


def test_logprobs_of_a_prompt_are_the_models_own(report: dict[str, Any], own: list[float]) -> None:
    for name in ("computed", "computed_in_pieces", "prompt_logprobs"):
        first, *others = report[name]
        assert first is None
        assert others == pytest.approx(own, abs=1e-4)


def test_the_likeliest_of_each_place(report: dict[str, Any], logprobs: torch.Tensor) -> None:
    first, *rows = report["topk_prompt"]
    best = logprobs.topk(4)
    assert first is None
    for row, tokens, values in zip(rows, best.indices, best.values, strict=False):
        assert [token for token, _ in row] == tokens.tolist()
        assert [value for _, value in row] == pytest.approx(values.tolist(), abs=1e-4)
    for tokens, values, topk in report["sampled"]:
        assert (len(tokens), len(values), len(topk)) == (1, 1, 1)
        assert [token for token, _ in topk[0]] == logprobs[-1].topk(3).indices.tolist()


def test_the_last_n_and_no_others(report: dict[str, Any], own: list[float]) -> None:
    scored, topk = report["last"]
    assert scored[:-5] == topk[:-5] == [None] * 36
    assert scored[-5:] == pytest.approx(own[-5:], abs=1e-4)
    assert [len(row) for row in topk[-5:]] == [2] * 5


def test_named_tokens_come_back_in_their_layout(
    report: dict[str, Any], logprobs: torch.Tensor
) -> None:
    tokens = report["tokens"]
    values = [
        logprobs[9, tokens[10]].item(),
        logprobs[9, 0].item(),
        logprobs[39, tokens[40]].item(),
    ]
    expected = torch.zeros(40, 3)
    expected[9, 0], expected[9, 2], expected[39, 1] = values
    starts, dense = report["named"]
    assert starts is None
    assert torch.allclose(torch.tensor(dense), expected, atol=1e-4)
    shape, starts, columns, listed = report["listed"]
    assert (shape, starts, columns) == ([40, 3], report["starts"], [0, 2, 1])
    assert listed == pytest.approx(values, abs=1e-4)


def test_alternatives_are_drawn_by_the_seed(report: dict[str, Any], logprobs: torch.Tensor) -> None:
    tokens, values = (torch.tensor(each) for each in report["drawn"])
    assert tokens.shape == (40, 4)
    assert torch.allclose(values, logprobs[:-1].gather(1, tokens), atol=1e-4)
    assert report["drawn_again"] == tokens.tolist()


def test_a_seed_repeats_a_request_whose_samples_still_differ(report: dict[str, Any]) -> None:
    first, second = report["seeded"]
    assert first == second
    assert len({tuple(tokens) for tokens in first}) == 3
    assert report["unseeded"][0] != report["unseeded"][1]
    assert len({tuple(tokens) for tokens in report["cold"]}) == 1


def test_stops_of_every_form(report: dict[str, Any]) -> None:
    free, by_id = report["free"], report["by_id"]
    assert by_id == free[: free.index(free[4]) + 1]
    assert report["by_string"] == report["by_strings"]
    assert len(report["by_string"]) < 30
    assert report["unbounded"] == 512 - 41


def test_sampled_logprobs_scale_with_the_temperature(
    report: dict[str, Any], logprobs: torch.Tensor
) -> None:
    """Differences between two tokens' are those of the model, divided by the temperature."""
    for name, pairs in report["tempered"].items():
        found = dict(pairs)
        one, other = (token for token, _ in pairs[:2])
        raw = (logprobs[-1, one] - logprobs[-1, other]).item()
        assert found[one] - found[other] == pytest.approx(raw / (float(name) or 1.0), abs=1e-3)
        assert sum(math.exp(value) for value in found.values()) <= 1.001


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("last_n", "prompt_logprobs_last_n is 41: it is at least 1 and at most 40"),
        ("topk", "topk_prompt_logprobs is 2000: it is at least 0 and at most 1000"),
        ("targets", "it has a row for each of the 40 tokens after the prompt's first"),
        ("empty", "The prompt is empty"),
        ("long", "exceeds the model's context window: 600 + 1 > 512"),
        ("image", "prompt.chunks.0 is of type image"),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(
    report: dict[str, Any], name: str, sentence: str
) -> None:
    refused = report["refused"][name]
    assert refused.startswith("BadRequestError")
    assert sentence in refused
