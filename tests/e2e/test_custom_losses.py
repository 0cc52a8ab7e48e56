"""Custom losses by the unmodified SDK: on the server they are what they are in the client."""

from typing import Any

import numpy as np
import pytest

from tests.e2e.live import TORCH_PYTHON, Live


@pytest.fixture(scope="module")
def results(live: Live) -> Any:
    return live.run("custom_losses.py", python=TORCH_PYTHON)


def read_own(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith(("custom/", "loss:"))}


def test_the_sdk_sends_its_losses_here(results: Any) -> None:
    assert results["loss_id"].startswith("loss-")
    assert "surrogate_loss:sum" not in results["server"]["metrics"][0]
    assert "surrogate_loss:sum" in results["client"]["metrics"][0]


@pytest.mark.parametrize("way", ["client", "callable"])
def test_a_loss_on_the_server_is_the_loss_in_the_client(results: Any, way: str) -> None:
    pairs = zip(results["server"]["metrics"], results[way]["metrics"], strict=True)
    for server, client in pairs:
        assert read_own(server) == pytest.approx(read_own(client), abs=1e-4)


@pytest.mark.parametrize("way", ["client", "callable"])
def test_two_steps_lead_to_the_same_model(results: Any, way: str) -> None:
    pairs = zip(results["server"]["logprobs"], results[way]["logprobs"], strict=True)
    for server, client in pairs:
        np.testing.assert_allclose(server, client, atol=1e-4)


def test_the_steps_have_changed_the_model(results: Any) -> None:
    first, second = results["server"]["metrics"]
    assert second["loss:sum"] < first["loss:sum"]


def test_several_targets_a_position_are_weighed_alike(results: Any) -> None:
    server, client = results["several"]
    assert server == pytest.approx(client, abs=1e-4)


def test_a_look_with_a_custom_loss_tells_its_numbers(results: Any) -> None:
    assert set(read_own(results["looked"])) == {
        "loss:sum",
        "custom/drift:sum",
        "custom/clipped:mean",
    }


def test_several_requests_of_one_call_are_reduced_by_their_suffix(results: Any) -> None:
    many = results["many"]
    assert many["metrics"]["loss:sum"] == pytest.approx(many["loss"], rel=1e-4)
    assert many["metrics"]["custom/length:mean"] == pytest.approx(results["length"], rel=1e-6)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("draws", "'torch.rand_like' is not allowed in a custom loss: it draws random numbers"),
        ("reaches", "datum 0: custom loss reaches: node getitem (operator.getitem): index 20"),
        ("step", "the forward_backward with seq_id 1 failed, so the gradients"),
        ("expands", "node expand (expand): its result would have 1000000000 numbers"),
        ("unknown", "config 'loss_id' is 'loss-unknown': the session of this model has no such"),
        ("next step", "the forward_backward with seq_id 3 failed"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(results: Any, mistake: str, sentence: str) -> None:
    assert sentence in results["told"][mistake]


def test_a_program_goes_on_after_its_mistakes(results: Any) -> None:
    assert results["after_mistakes"] == "accepted"
