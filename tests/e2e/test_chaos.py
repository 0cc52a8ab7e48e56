"""Through a bad network every run ends with the weights it would have had on a good one."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.chaos import BadNetwork, Fault, bad_network
from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LEAST = 2  # of each fault in a run
# Everything that a run leaves, by its name; sampling calls that are asked for again are no harm.
COUNTS = """
import json
from webapp.runs.models import Metric, Operation, Run, Session
from webapp.deployments.models import SamplingSession
from webapp.checkpoints.models import Checkpoint
sessions = Session.objects.filter(display_name={name!r})
runs = Run.objects.filter(session__in=sessions)
operations = Operation.objects.filter(run__in=runs).order_by('run__model_seq_id', 'seq')
print(json.dumps({{
    'sessions': sessions.count(),
    'steps': list(runs.order_by('model_seq_id').values_list('step', flat=True)),
    'tokens': list(runs.order_by('model_seq_id').values_list('num_tokens', flat=True)),
    'operations': list(map(list, operations.values_list('seq', 'kind', 'status'))),
    'metrics': Metric.objects.filter(run__in=runs).count(),
    'samplers': SamplingSession.objects.filter(session__in=sessions).count(),
    'saved': sorted(map(list, Checkpoint.objects.filter(run__in=runs)
        .values_list('run__model_seq_id', 'kind', 'seq'))),
    'digest': Checkpoint.objects.get(run__in=runs, name='final').digest,
}}))
"""


@pytest.fixture(params=[1, 2])
def network(live: Live, request: pytest.FixtureRequest) -> Iterator[BadNetwork]:
    with bad_network(live.url, request.param) as network:
        yield network


def look(live: Live, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(live.manage(COUNTS.format(name=name)))
    return found


@pytest.mark.parametrize("script", ["chaos_sft.py", "chaos_rl.py"])
def test_a_run_through_a_bad_network_is_the_quiet_run(
    live: Live, network: BadNetwork, script: str
) -> None:
    quiet_name = f"quiet {script} {network.url}"
    quiet = live.run(script, RUN_NAME=quiet_name)
    name = f"chaos {script} {network.url}"
    started = time.monotonic()
    report = live.run(script, RUN_NAME=name, TINKER_BASE_URL=network.url)
    sys.stderr.write(f"{script} {time.monotonic() - started:.1f}s {network.done} {network.hit}\n")
    assert [fault for fault in Fault if network.done[fault] < LEAST] == []
    assert look(live, name) == look(live, quiet_name)
    assert report | {"final": ""} == quiet | {"final": ""}
