"""Exports pushed to a Hub: to one that answers as the real one does, and to none."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils.timezone import now

from tests.webapp.cast import make_actor
from tests.webapp.checkpoints.test_pages import make_run
from tests.webapp.deployments.conftest import make_checkpoint
from training.errors import InvalidInput
from webapp.checkpoints.models import Export
from webapp.fleet.models import BaseModel
from workers.hub import push_export

pytestmark = pytest.mark.django_db
TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """What was made and committed on it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer(
                {"url": f"{self.server.url}/me/model", "id": "me/model", "name": "me/model"}
            )
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.commit(body)
        else:
            self.answer({}, 200)

    def commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[line["value"]["path"]] = content
        url = f"{self.server.url}/me/model/commit/1"
        self.answer({"commitUrl": url, "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
            return
        self.answer({"id": "me/model", "sha": "0", "siblings": [], "modelId": "me/model"})

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def export() -> Export:
    run = make_run(make_actor("alice"), BaseModel.objects.create(path="/models/tiny"))
    checkpoint = make_checkpoint(run)
    export = Export.objects.create(
        project=run.project, checkpoint=checkpoint, kind="peft", status="ready", ended_at=now()
    )
    folder = Path(settings.HONE_HOME) / "exports" / export.pk
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("# A card")
    export.path = str(folder.relative_to(settings.HONE_HOME))
    export.save()
    return export


def test_the_folder_lies_in_the_repository_and_the_token_nowhere(
    hub: Hub, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = StringIO()
    call_command("push_export", export.pk, "me/model", endpoint=hub.url, stdout=out)
    assert out.getvalue().strip() == f"{hub.url}/me/model/commit/1"
    assert hub.made[0]["visibility"] == "private"
    assert hub.files["adapter_model.safetensors"] == b"weights"
    assert hub.files["README.md"].endswith(b"# A card")
    written = [file.read_bytes() for file in Path(settings.HONE_HOME).rglob("*") if file.is_file()]
    assert not [content for content in written if TOKEN.encode() in content]


def test_a_token_that_may_not_write_is_named_as_the_reason(hub: Hub, export: Export) -> None:
    with pytest.raises(InvalidInput, match="did not take the token for me/model"):
        push_export(export, "me/model", "hf_wrong", endpoint=hub.url)
    assert not hub.files


def test_without_a_network_there_is_a_sentence(export: Export) -> None:
    with pytest.raises(InvalidInput, match=r"http://127.0.0.1:1 cannot be reached from here"):
        push_export(export, "me/model", TOKEN, endpoint="http://127.0.0.1:1")
    with pytest.raises(InvalidInput, match="is no name of a repository"):
        push_export(export, "me/mo del", TOKEN, endpoint="http://127.0.0.1:1")


def test_what_is_not_ready_is_not_pushed(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Export.objects.update(status="failed")
    with pytest.raises(CommandError, match="Nothing was pushed: the export"):
        call_command("push_export", export.pk, "me/model")
    with pytest.raises(CommandError, match="There is no export exp-none"):
        call_command("push_export", "exp-none", "me/model")
