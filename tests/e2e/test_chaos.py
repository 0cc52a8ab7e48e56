"""Through a bad network every run ends with the weights it would have had on a good one."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.chaos import BadNetwork, Fault, bad_network
from tests.e2e.live import Live, read_report
from tests.e2e.test_sdk import count_connections, find_web_process, open_model, train
from tests.webapp.tinker.conftest import make_request
from webapp.tinker import wire

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LEAST = 2  # of each fault in a run
NUM_POLLS, NUM_UPLOADS = 200, 40
PATIENCE = 120.0
PADDING = b"\xa2\x06\x80\x80\x80\x01"  # field 100, with 2 MB
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


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """A run that nothing went wrong with: what its program said, and what it left."""

    script: str
    report: Any
    rows: dict[str, Any]


@pytest.fixture(scope="module", params=["chaos_sft.py", "chaos_rl.py"])
def quiet(live: Live, request: pytest.FixtureRequest) -> Quiet:
    name = f"quiet {request.param}"
    report = live.run(request.param, RUN_NAME=name)
    return Quiet(script=request.param, report=report, rows=look(live, name))


def test_a_run_through_a_bad_network_is_the_quiet_run(
    live: Live, network: BadNetwork, quiet: Quiet
) -> None:
    name = f"chaos {quiet.script} {network.url}"
    report = live.run(quiet.script, RUN_NAME=name, TINKER_BASE_URL=network.url)
    assert [fault for fault in Fault if network.done[fault] < LEAST] == []
    assert look(live, name) == quiet.rows
    assert report | {"final": ""} == quiet.report | {"final": ""}


def insist(api: httpx.Client, path: str, body: bytes, content_type: str) -> httpx.Response:
    """As the SDK does: again until there is an answer, whoever was killed meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            answer = api.post(
                f"/api/v1/{path}", content=body, headers={"Content-Type": content_type}
            )
            if answer.status_code not in (408, 503):
                return answer
        time.sleep(0.1)
    raise AssertionError(f"no answer to {path}")


def upload(api: httpx.Client, model_id: str, seq: int) -> str:
    """Two megabytes, most of them in a field that newer clients may have."""
    body = wire.encode_forward_backward(model_id, seq, make_request(forward_only=True))
    padding = b"\0" * 2**21
    answer = insist(api, "forward_backward", body + PADDING + padding, wire.PROTOBUF)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def test_polls_uploads_and_a_program_outlive_the_web_process(live: Live) -> None:
    undisturbed = live.run("loop.py", "12")
    limits = httpx.Limits(max_connections=None)
    headers = {"X-API-Key": live.api_key}
    with (
        httpx.Client(base_url=live.url, headers=headers, timeout=60, limits=limits) as api,
        ThreadPoolExecutor(NUM_POLLS + 4) as pool,
    ):
        waiting, filled = open_model(api), open_model(api)
        # Number 1 never comes, so this one waits, and the polls with it.
        promise = train(api, wire.encode_forward_backward(waiting, 2, make_request())).json()
        poll = json.dumps({"request_id": promise["request_id"]}).encode()
        polls = [
            pool.submit(insist, api, "retrieve_future", poll, wire.JSON) for _ in range(NUM_POLLS)
        ]
        while count_connections(live.port) < NUM_POLLS:
            time.sleep(0.05)
        program = live.begin("loop.py", "12")
        assert program.stderr is not None
        next(line for line in program.stderr if line.startswith("step 3"))
        uploads = [pool.submit(upload, api, filled, seq) for seq in range(1, NUM_UPLOADS + 1)]
        next(as_completed(uploads))
        os.kill(find_web_process(live), signal.SIGKILL)
        assert read_report(program)["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
        assert len({upload.result() for upload in uploads}) == NUM_UPLOADS
        train(api, wire.encode_forward_backward(waiting, 1, make_request()))
        assert {answer.result().status_code for answer in polls} == {200}
