"""What a client of the Fireworks SDK may ask of a pass, computed by a trainer."""

import math

import pytest

from tests.e2e.firetitan.conftest import Begin

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_each_loss_the_vectors_and_batches_in_pieces_are_computed(run: Begin) -> None:
    told = run("objectives.py")
    assert all(math.isfinite(loss) for loss in told["losses"].values())
    assert len(told["losses"]) == 8
    norms = told["norms"]
    assert norms["num_sequences"] == pytest.approx(norms["none"] / 4, rel=1e-4)
    assert norms["num_loss_tokens"] == pytest.approx(norms["none"] / 32, rel=1e-4)
    for values in (*told["vectors"].values(), told["contrastive"]):
        assert values[-1] < values[0] / 2
    assert (told["num_outputs"], told["num_tokens"]) == (1100, 3300.0)
    assert told["candidates"] == [8, 2]
    assert told["projected"] == [8, 3]
