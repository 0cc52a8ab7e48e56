"""The unmodified tinker SDK against a live installation."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.live import Live, read_report
from tests.e2e.test_recovery import find_processes
from tests.webapp.tinker.conftest import make_request
from training.types import (
    ForwardBackwardOutput,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    SamplingParams,
)
from webapp.accounts.credentials import REMEMBER_SECONDS
from webapp.tinker.wire_samples import encode_sample_output
from webapp.wire import passes

pytestmark = pytest.mark.e2e

OTHER_PROJECT = """
from webapp.accounts.models import Actor, User
from webapp.accounts.services import create_key, create_project
user = User.objects.create_user('{name}')
project = create_project(user=user, name='{name}')
print(create_key(actor=Actor(user=user, project=project, role='owner'), name='{name}')[1])
"""


@pytest.fixture
def api(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


def find_run(api: httpx.Client, name: str) -> dict[str, Any]:
    runs = api.get("/rest/runs").json()["results"]
    return next(run for run in runs if run["name"] == name)


def open_model(api: httpx.Client) -> str:
    session = api.post("/api/v1/create_session", json={}).json()["session_id"]
    fields = {"session_id": session, "model_seq_id": 0, "base_model": "tiny-chatml-1m"}
    return str(api.post("/api/v1/create_model", json=fields).json()["model_id"])


def train(api: httpx.Client, body: bytes) -> httpx.Response:
    headers = {"Content-Type": passes.PROTOBUF}
    return api.post("/api/v1/forward_backward", content=body, headers=headers)


def encode_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_our_codec_agrees_with_the_sdks_own(live: Live) -> None:
    logprobs = [np.array([-0.5, -1.5], np.float32), np.array([-2.0], np.float32)]
    output = ForwardBackwardOutput(logprobs=logprobs, metrics={"loss:sum": 4.0})
    samples = SampleOutput(
        sequences=[SampledSequence(tokens=[7, 8], logprobs=[-0.5, -1.0], stop_reason="length")],
        prompt_logprobs=[None, -1.5],
    )
    asked = SampleRequest(prompt=[1, 2], params=SamplingParams())
    given = {
        "output": encode_text(passes.encode_output(output)),
        "samples": encode_text(encode_sample_output(samples, asked)),
    }
    report = live.run("encode.py", given=json.dumps(given))
    model_id, seq, request = passes.decode_forward_backward(base64.b64decode(report["request"]))
    assert (model_id, seq, request.loss_fn) == ("ses-1:train:0", 7, "ppo")
    assert request.config == {"clip_low_threshold": 0.9, "mode": "x"}
    (datum,) = request.data
    assert datum.tokens.tolist() == [1, 2, 3]
    assert {key: values.tolist() for key, values in datum.inputs.items()} == {
        "target_tokens": [2, 3, 4],
        "weights": [0.0, 0.5, -1.0],
        "logprobs": [-1.0, -2.0, -3.0],
    }
    assert report["logprobs"] == [[-0.5, -1.5], [-2.0]]
    assert report["metrics"] == {"loss:sum": 4.0}
    assert report["sequences"] == [[[7, 8], [-0.5, -1.0], "length"]]
    assert report["prompt_logprobs"] == [None, -1.5]


def test_a_users_loop_trains_and_shows_up_with_its_curves(live: Live, api: httpx.Client) -> None:
    report = live.run("loop.py", "6", RUN_NAME="my own loop")
    assert len(report["losses"]) == 6
    assert report["losses"][3] < report["losses"][0]
    assert report["tokens"]
    run = find_run(api, "my own loop")
    assert (run["origin"], run["status"], run["step"], run["rank"]) == ("tinker", "done", 6, 8)
    series = api.get(f"/rest/runs/{run['id']}/metrics").json()["series"]
    assert len(series["loss"]) == 6
    assert len(series["grad_norm"]) == 6
    # The curve is a mean over the 32 tokens of a step, the SDK's loss their sum.
    assert series["loss"][0][1] == pytest.approx(report["losses"][0] / 32, rel=1e-5)


def test_chunks_forward_only_and_compression_change_no_number(live: Live) -> None:
    report = live.run("gradients.py")
    assert report["with_forward"] == pytest.approx(report["alone"], rel=1e-6)
    assert report["forward_loss"] > 0
    assert (report["num_outputs"], report["lengths_match"]) == (2100, True)
    assert report["loss"] == pytest.approx(report["sum_of_logprobs"], rel=1e-5)
    for logprobs, packed, few in zip(
        report["whole"], report["compressed"], report["few"], strict=True
    ):
        assert logprobs == pytest.approx(packed, abs=1e-4)
        assert logprobs == pytest.approx(few, abs=1e-4)


def test_several_targets_a_position_are_the_same_dense_sparse_and_one_by_one(live: Live) -> None:
    report = live.run("targets.py")
    assert report["sparse"] == pytest.approx(report["dense"], rel=1e-6)
    assert report["columns"] == pytest.approx(report["dense"], rel=1e-4)
    assert np.shape(report["of_dense"]) == (12, 6)
    np.testing.assert_allclose(report["of_sparse"], report["of_dense"], atol=1e-5)
    np.testing.assert_allclose(report["of_columns"], report["of_dense"], atol=1e-4)


def test_policy_losses_with_provenance_and_dimuon_go_through_the_sdk(live: Live) -> None:
    report = live.run("policies.py")
    # On policy all ratios are 1: twelve tokens, six with the advantage 1, six with -0.5.
    assert report["losses"] == pytest.approx(dict.fromkeys(report["losses"], -3.0), abs=0.02)
    assert report["metrics"]["kl_sample_train_k3:mean"] == pytest.approx(0.0, abs=1e-3)
    assert report["metrics"]["clipped:mean"] == 0
    assert report["resumed"] == pytest.approx(report["went_on"], rel=1e-5)
    assert report["fresh"][0] == pytest.approx(report["went_on"][0], rel=1e-5)
    assert report["fresh"][1] != pytest.approx(report["went_on"][1], rel=1e-5)
    assert "this model was created with dimuon" in report["refused"]
    assert report["optimizers"] == ["dimuon"] * 3


def test_weights_are_saved_and_loaded_with_and_without_the_optimizer(live: Live) -> None:
    report = live.run("checkpoints.py")
    went_on = report["went_on"]
    assert report["with_optimizer"] == pytest.approx(went_on, rel=1e-5)
    assert report["loaded"] == pytest.approx(went_on, rel=1e-5)
    assert report["without_optimizer"][0] == pytest.approx(went_on[0], rel=1e-5)
    assert abs(report["without_optimizer"][2] - went_on[2]) > 0.01
    assert report["path"].endswith("/weights/third")
    assert report["listed"] == ["sampler_weights/third", "weights/third"]
    assert report["left"] == ["weights/third"]
    assert (report["rank"], report["base_model"]) == (8, "tiny-chatml-1m")


def test_samples_come_from_the_weights_that_were_asked_for(live: Live) -> None:
    report = live.run("samples.py")
    (trained,), (again,), (base,) = report["trained"], report["again"], report["base"]
    assert len(trained["tokens"]) == len(trained["logprobs"]) == 6
    assert trained["stop"] == "length"
    assert again["tokens"] == trained["tokens"]
    assert again["logprobs"] == pytest.approx(trained["logprobs"], abs=1e-4)
    assert (
        max(abs(a - b) for a, b in zip(base["logprobs"], trained["logprobs"], strict=True)) > 0.01
    )
    assert len({tuple(each["tokens"]) for each in report["several"]}) > 1
    (stopped,) = report["stopped"]
    assert (stopped["tokens"], stopped["stop"]) == ([report["first_token"]], "stop")
    # What the trainer scored at position i is what the sampler says of the token after it.
    assert report["prompt_logprobs"][0] is None
    assert report["prompt_logprobs"][1:] == pytest.approx(report["scored"][:-1], abs=1e-3)
    assert report["base_model"] == "tiny-chatml-1m"


@pytest.fixture(scope="module")
def refusals(live: Live) -> Any:
    return live.run("refusals.py")


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("rank 0", "rank is 0: choose one from 1 to 512"),
        ("rank 10000", "rank is 10000: choose one from 1 to 512"),
        ("model", "offers no base model acme/none"),
        ("token", "datum 0: tokens: 999999 at position 2"),
        ("target", "datum 0: target_tokens: 999999 at position 2"),
        ("length", "datum 0: weights has the shape (2,)"),
        ("nan", "datum 0: advantages: nan at position 1 is not finite"),
        ("missing", "datum 0: logprobs is missing"),
        ("loss", "'no_such_loss' is not known here"),
        ("checkpoint", "There is no checkpoint tinker://x:train:0/weights/y"),
        ("context", "exceeds the model's context window: 2 + 100000"),
        ("prompt", "Token id 999999 at position 0 of the prompt is out of vocabulary"),
        ("part", "the forward_backward with seq_id 1 failed, so the gradients"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(refusals: Any, mistake: str, sentence: str) -> None:
    assert sentence in refusals["told"][mistake]


def test_a_program_goes_on_after_its_mistakes(refusals: Any) -> None:
    assert refusals["loss"] > 0


def test_a_replayed_seq_with_other_bytes_is_refused(api: httpx.Client) -> None:
    model_id = open_model(api)
    body = passes.encode_forward_backward(model_id, 1, make_request())
    first = train(api, body)
    assert first.status_code == 200
    assert train(api, body).json() == first.json()
    other = passes.encode_forward_backward(model_id, 1, make_request(forward_only=True))
    answer = train(api, other)
    assert answer.status_code == 400
    assert "already used for another request" in answer.json()["detail"]


def test_a_garbage_protobuf_is_refused(api: httpx.Client) -> None:
    answer = train(api, os.urandom(500))
    assert answer.status_code == 400
    assert "detail" in answer.json()


def test_another_projects_ids_do_not_exist(live: Live, api: httpx.Client) -> None:
    model_id = open_model(api)
    promise = train(api, passes.encode_forward_backward(model_id, 1, make_request())).json()
    stranger = {"X-API-Key": live.manage(OTHER_PROJECT.format(name=f"carol{time.time_ns()}"))}
    path = f"tinker://{model_id}/weights/any"
    for call, fields in [
        ("get_info", {"model_id": model_id}),
        ("optim_step", {"model_id": model_id, "seq_id": 2}),
        ("retrieve_future", {"request_id": promise["request_id"]}),
        ("weights_info", {"tinker_path": path}),
    ]:
        answer = api.post(f"/api/v1/{call}", json=fields, headers=stranger)
        assert (call, answer.status_code) == (call, 404)
    run_id = f"/api/v1/training_runs/{model_id}"
    assert api.get(run_id, headers=stranger).status_code == 404
    assert api.get(run_id).status_code == 200


def config(api: httpx.Client, secret: str) -> int:
    return api.post("/api/v1/client/config", headers={"X-API-Key": secret}).status_code


def test_a_wrong_key_and_a_revoked_one_open_nothing(live: Live, api: httpx.Client) -> None:
    assert live.run("key.py", TINKER_API_KEY="tml-wrong")["status"] == 401
    created = api.post("/rest/keys", json={"name": "short-lived"}).json()
    secret = created["key"]
    assert live.run("key.py", TINKER_API_KEY=secret) == {}
    assert api.delete(f"/rest/keys/{created['id']}").status_code == 204
    deadline = time.monotonic() + 2 * REMEMBER_SECONDS
    while config(api, secret) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    refused = live.run("key.py", TINKER_API_KEY=secret)
    assert refused["status"] == 401
    assert "unknown or was revoked" in refused["text"]


def count_threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_200_parked_polls_cost_the_web_process_no_threads(live: Live, api: httpx.Client) -> None:
    model_id = open_model(api)
    # Number 1 never comes, so this one waits, and 200 polls with it.
    promise = train(api, passes.encode_forward_backward(model_id, 2, make_request())).json()
    pid = find_processes(live.process.pid)["web"]
    before = count_threads(pid)
    fields = {"request_id": promise["request_id"]}

    def poll(_: int) -> int:
        return client.post("/api/v1/retrieve_future", json=fields).status_code

    client = httpx.Client(
        base_url=live.url,
        headers=api.headers,
        timeout=60,
        limits=httpx.Limits(max_connections=None),
    )
    with client, ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(poll, number) for number in range(200)]
        most = 0
        while not any(answer.done() for answer in answers):
            most = max(most, count_threads(pid) - before)
            if count_connections(live.port) >= 200:
                train(api, passes.encode_forward_backward(model_id, 1, make_request()))
        assert most <= 5
        assert {answer.result() for answer in answers} == {200}


def count_connections(port: int) -> int:
    """Established ones at the server's end."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [row.split() for row in rows]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in fields)


def test_a_killed_worker_is_a_pause_and_nothing_else(live: Live) -> None:
    undisturbed = live.run("loop.py", "30")
    program = live.begin("loop.py", "30")
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("step 9"):
            break
    worker = live.manage("print(Worker.objects.get(kind='gpu').pid)")
    os.kill(int(worker), signal.SIGKILL)
    disturbed = read_report(program)
    assert disturbed["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
    assert live.manage("print(Worker.objects.get(kind='gpu').pid)") != worker
