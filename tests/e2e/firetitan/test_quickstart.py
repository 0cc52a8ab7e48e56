"""The quickstart of Fireworks' documentation, as it is printed there, but for three lines."""

import ast
import re

import httpx
import pytest

from tests.e2e.firetitan.conftest import PYTHON
from tests.e2e.live import SCRIPT_SECONDS, Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_quickstart_trains_all_weights_saves_them_and_cleans_up(
    live: Live, environment: dict[str, str], api: httpx.Client
) -> None:
    program = live.begin("firetitan/quickstart.py", python=PYTHON, **environment)
    output, errors = program.communicate(timeout=SCRIPT_SECONDS)
    assert program.returncode == 0, errors
    steps = [ast.literal_eval(told) for told in re.findall(r"^Step \d+: (.*)$", output, re.M)]
    losses = [step["sft_loss"] for step in steps]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    snapshot = re.search(r"^Checkpoint: (sft-final-[0-9a-f]{8})$", output, re.M)
    assert snapshot is not None
    assert "maxContextLength is 4096" in errors  # what is not followed is told to the program
    runs = api.get("/rest/runs").json()["results"]
    run = next(each for each in runs if each["name"] == "sft-quickstart")  # the newest
    assert (run["origin"], run["status"], run["rank"], run["step"]) == ("firetitan", "done", 0, 10)
    saved = api.get("/rest/checkpoints", params={"run": run["id"]}).json()["results"]
    assert [each["name"] for each in saved] == [snapshot[1]]
