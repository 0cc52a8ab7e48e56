"""What an SDK client holds open, waits for and reads about its account: the real SDK and CLI."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import SDK_PYTHON, Live

pytestmark = pytest.mark.e2e


def test_hundreds_of_samples_come_by_one_poller_also_to_copies_of_the_client(live: Live) -> None:
    told = live.run("many_samples.py")
    assert (told["num_answers"], told["num_ids"], told["same"]) == (300, 300, True)
    sampler, seq_id, _ = told["session"].split("/")
    assert seq_id == "0"
    first, second = told["copies"]
    assert first == [f"{sampler}/1000000000/0", "20"]
    assert second == [f"{sampler}/2000000000/0", "20"]
    assert told["num_late"] > 0
    session = f"SamplingSession.objects.get(pk={sampler!r}).calls"
    assert int(live.manage(f"print({session}.filter(status='cancelled').count())")) > 0
    assert live.manage(f"print({session}.filter(status__in=('queued', 'running')).count())") == "0"


@pytest.fixture(scope="module")
def account(live: Live) -> Any:
    """The audit log that it reads is of today: something must have happened today."""
    headers = {"X-API-Key": live.api_key}
    made = httpx.post(f"{live.url}/rest/keys", json={"name": "new"}, headers=headers, timeout=60)
    made.raise_for_status()
    return live.run("account.py", RUN_NAME="its account")


def test_the_sdk_exchanges_its_key_for_a_token_and_works_by_it(account: Any) -> None:
    assert account["user"].startswith("hone:user:")
    assert account["organization"].startswith("tml:organization:prj-")
    assert account["loss"] > 0
    assert account["num_sequences"] == 2


def test_a_session_is_listed_described_and_found(account: Any) -> None:
    assert account["is_listed"]
    assert (account["runs"], account["num_samplers"]) == (True, 1)
    assert account["metadata"] == account["sessions"] == {"recipe": "account"}
    assert (account["found"], account["status"]) == (account["session"], "client_finished")
    assert account["num_checkpoints"] == 1


def test_a_trace_shows_what_ran(account: Any) -> None:
    events = json.loads(account["trace"])["traceEvents"]
    ended = {each["name"] for each in events if each["ph"] == "e"}
    assert {"create_model", "forward_backward", "optim_step", "save_weights", "sample"} <= ended


def test_usage_storage_and_audit_are_read_by_the_admin_client(account: Any) -> None:
    assert account["usage"]["training"]["token_count"] == 12
    assert account["usage"]["sampling_prefill"]["token_count"] == 3
    assert account["usage"]["sampling_sample"]["token_count"] == 6
    assert account["usage"]["checkpoint"]["count"] == 1
    assert account["model"]
    assert account["num_stored"] >= 1
    assert "key_created" in account["events"]


def test_the_command_line_exports_a_trace(live: Live, account: Any, tmp_path: Path) -> None:
    file = tmp_path / "session.pftrace"
    live.type_tinker("session", "export-trace", account["session"], "--output", str(file))
    assert json.loads(file.read_text()) == json.loads(account["trace"])
    url = live.type_tinker("session", "export-trace", account["session"], "--url-only")
    assert url.startswith(live.url)


def test_the_command_line_tells_usage(live: Live, account: Any) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = [f"{hour + timedelta(hours=each):%Y-%m-%dT%H:%M:%SZ}" for each in (-1, 2)]
    assert "sampling_prefill" in live.type_tinker("billing", "usage", *window, "--csv", "-")
    stored = live.type_tinker("--format", "json", "billing", "checkpoint-storage")
    assert json.loads(stored)["data"][0]["checkpoint_count"] >= 1


def test_the_command_line_says_who_it_is(live: Live, account: Any) -> None:
    who = json.loads(live.type_tinker("--format", "json", "auth", "whoami"))
    assert who["user_urn"] == account["user"]
    assert "Tinker accessible: yes" in live.type_tinker("auth", "status")


def log_in(live: Live, home: Path, key: str) -> subprocess.CompletedProcess[str]:
    """Without a key in its environment: what it is given is what it keeps."""
    environment = {name: value for name, value in live.client.items() if name != "TINKER_API_KEY"}
    return subprocess.run(
        [str(SDK_PYTHON.with_name("tinker")), "auth", "login"],
        env=environment | {"HOME": str(home)},
        input=f"{key}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_line_keeps_a_key_that_the_server_knows(live: Live, tmp_path: Path) -> None:
    refused = log_in(live, tmp_path, "tml-wrong")
    assert "unknown or was revoked" in refused.stderr
    assert not (tmp_path / ".tinker" / "credentials.json").exists()
    assert "Logged in as" in log_in(live, tmp_path, live.api_key).stdout
    kept = json.loads((tmp_path / ".tinker" / "credentials.json").read_text())
    assert live.api_key in json.dumps(kept)
