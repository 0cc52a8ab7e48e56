"""A program on a trainer of its own, without a deployment."""

from typing import Any

import pytest

from tests.e2e.firetitan.conftest import Begin

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = "accounts/fireworks/models/tiny-chatml-1m"


@pytest.mark.parametrize("rank", [8, 0])
def test_every_call_of_a_training_client_that_needs_no_deployment(run: Begin, rank: int) -> None:
    told: dict[str, Any] = run("bare.py", MODEL, str(rank))
    assert told["capabilities"] == [MODEL]
    assert told["info"] == {"is_lora": rank > 0, "rank": rank or None, "name": MODEL}
    assert told["start_differs_from_base"] == pytest.approx(0, abs=1e-4)
    assert told["losses"] == sorted(told["losses"], reverse=True)
    assert told["trained_on_differs"] > 1e-3
    assert told["loaded_differs"] == pytest.approx(0, abs=1e-5)
    assert told["listed"] == [told["saved"]] == ["state-1"]
    assert len({row["name"] for row in told["rows"]}) == 3
    assert "no_such_loss" in told["failures"]["loss"]
    assert "never-saved" in told["failures"]["state"]
    assert told["failures"]["reference"]
    assert told["works_on"] > 0
