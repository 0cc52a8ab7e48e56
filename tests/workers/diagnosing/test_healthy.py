"""A recipe that does nothing wrong has no finding, whatever its settings."""

from typing import Any

import pytest

from tests.workers.test_rl import drive, make_rl_run, read_curve, sums
from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion
from webapp.runs.findings import list_entries, list_open
from workers.diagnose import diagnose

pytestmark = pytest.mark.django_db

__all__ = ["sums"]  # a fixture


@pytest.mark.parametrize("changes", [{}, {"loss": "ppo", "num_substeps": 2}])
def test_reinforcement_learning_as_it_should_be_is_left_alone(
    actor: Actor, sums: DatasetVersion, changes: dict[str, Any]
) -> None:
    run = drive(make_rl_run(actor, sums, group_size=8, **changes))
    assert run.error == ""
    diagnose(run.pk)
    assert [each.text for each in list_open(run)] == []
    states = {entry.diagnostic.key: entry.state for entry in list_entries(run)}
    assert states["sampler_trainer_disagree"] == states["reward_hacking"] == "clear"
    # The second substep of a batch learns from samples that the first has made old.
    differences = read_curve(run, "sampler/logprob_difference_mean")
    assert (differences[2] > 0.01) is bool(changes)
