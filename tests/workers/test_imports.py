"""Rows from a folder of this machine and from the Hub, and everything that is refused there."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from pytest_django import Settings

from tests.webapp.cast import make_actor, make_viewer, sign_in
from training.errors import InvalidInput
from webapp.accounts.models import Actor, User
from webapp.core.errors import UserError
from webapp.datasets.imports import import_hub, import_path
from webapp.datasets.models import DatasetVersion
from workers import imports, ingest

LINE = json.dumps({"prompt": "1+1", "completion": "2"}) + "\n"


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> Path:
    folder = tmp_path / "shelf"
    (folder / "sums").mkdir(parents=True)
    (folder / "sums" / "rows.jsonl").write_text(LINE * 3)
    (tmp_path / "secret.jsonl").write_text(LINE)
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "inner.jsonl").symlink_to(folder / "sums" / "rows.jsonl")
    settings.HONE_IMPORT_DIR = str(folder)
    return folder


@pytest.fixture
def operator(actor: Actor) -> Actor:
    User.objects.filter(pk=actor.user.pk).update(is_staff=True)
    actor.user.refresh_from_db()
    return actor


def validate(version: DatasetVersion) -> DatasetVersion:
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    return version


@pytest.mark.parametrize("path", ["sums/rows.jsonl", "inner.jsonl", "sums/../sums/rows.jsonl"])
def test_a_file_of_the_folder_becomes_a_version(
    operator: Actor, folder: Path, tmp_path: Path, path: str
) -> None:
    version = validate(import_path(actor=operator, name="sums", path=path))
    assert (version.status, version.num_rows, version.kind) == ("ready", 3, "prompt_completion")
    assert version.derivation == {"import": {"path": "sums/rows.jsonl"}}
    assert version.size_bytes == len(LINE) * 3
    assert (folder / "sums" / "rows.jsonl").exists()
    page = sign_in(operator).get(f"/datasets/versions/{version.pk}/").content.decode()
    assert "imported from sums/rows.jsonl of this machine" in page


@pytest.mark.parametrize(
    "path",
    ["../secret.jsonl", "link.jsonl", "/etc/passwd", "sums", "none.jsonl", "", "a\x00b", "x" * 500],
)
def test_what_is_not_in_the_folder_is_not_there(operator: Actor, folder: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"There is no file|Give the path"):
        import_path(actor=operator, name="sums", path=path)
    assert not DatasetVersion.objects.exists()


def test_only_operators_import_files_and_only_where_a_folder_is_set(
    actor: Actor, operator: Actor, folder: Path, settings: Settings
) -> None:
    for other in (make_actor("charlie"), make_viewer(actor)):
        with pytest.raises(UserError, match=r"operator|viewer"):
            import_path(actor=other, name="sums", path="sums/rows.jsonl")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="of no known format"):
        import_path(actor=operator, name="sums", path="notes.txt")
    settings.HONE_IMPORT_DIR = ""
    with pytest.raises(UserError, match="HONE_IMPORT_DIR"):
        import_path(actor=operator, name="sums", path="sums/rows.jsonl")


def test_a_file_that_is_gone_when_the_worker_comes_fails_with_a_sentence(
    operator: Actor, folder: Path
) -> None:
    version = import_path(actor=operator, name="sums", path="sums/rows.jsonl")
    (folder / "sums" / "rows.jsonl").unlink()
    assert "There is no file" in validate(version).error


class FakeHub(HfApi):
    """What of the Hub is asked here, without a network."""

    files = ("README.md", "data/train.csv")
    size = 100

    def list_repo_files(self, *_: Any, **__: Any) -> list[str]:
        return list(self.files)

    def get_paths_info(self, *_: Any, **__: Any) -> list[Any]:
        return [SimpleNamespace(size=self.size)]

    def hf_hub_download(self, _repo: str, file: str, *, local_dir: str, **_: Any) -> str:  # type: ignore[override]
        path = Path(local_dir) / Path(file).name
        path.write_text("prompt,completion\n1+1,2\n")
        return str(path)


def test_the_only_file_of_rows_of_a_hub_dataset_is_taken(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "HfApi", FakeHub)
    version = validate(import_hub(actor=actor, name="gsm", repository="openai/gsm8k"))
    assert (version.status, version.filename, version.format) == ("ready", "train.csv", "csv")
    assert version.derivation["import"]["hub"] == "openai/gsm8k"


@pytest.mark.parametrize(
    ("files", "size", "complaint"),
    [
        (("a.md",), 1, "has no .jsonl, .csv or .parquet file"),
        (("a.csv", "b.parquet"), 1, "has 2 files of rows, name one: a.csv, b.parquet"),
        (("a.csv",), 10**12, "up to 2,147,483,648 are taken"),
    ],
)
def test_a_hub_dataset_that_cannot_be_taken_says_why(
    tmp_path: Path, files: tuple[str, ...], size: int, complaint: str
) -> None:
    hub = FakeHub()
    hub.files, hub.size = files, size  # type: ignore[assignment]
    source = {"hub": "a/b", "file": "", "revision": "main"}
    with pytest.raises(InvalidInput, match=complaint):
        imports.fetch(source, tmp_path / "upload", hub)
    assert not (tmp_path / "upload").exists()


def test_where_there_is_no_network_a_sentence_says_what_to_do(actor: Actor, tmp_path: Path) -> None:
    source = {"hub": "openai/gsm8k", "file": "main/train.parquet", "revision": "main"}
    with pytest.raises(InvalidInput, match=r"cannot be reached from here .* upload the file"):
        imports.fetch(source, tmp_path / "upload", HfApi(endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"repository": "a b"}, "repository"),
        ({"repository": "a/b/c"}, "repository"),
        ({"repository": "a/b", "file": "../x.csv"}, "file"),
        ({"repository": "a/b", "file": "x.bin"}, "file"),
        ({"repository": "a/b", "revision": "x y"}, "revision"),
    ],
)
def test_names_of_the_hub_are_checked_before_it_is_asked(
    actor: Actor, wanted: dict[str, str], field: str
) -> None:
    with pytest.raises(UserError) as refused:
        import_hub(actor=actor, name="sums", **wanted)
    assert refused.value.field == field


def test_the_form_takes_one_source(operator: Actor, folder: Path) -> None:
    browser = sign_in(operator)
    assert "File of this machine" in browser.get("/datasets/import/").content.decode()
    both = {"name": "sums", "path": "inner.jsonl", "repository": "a/b"}
    for data in ({"name": "sums"}, both):
        answer = browser.post("/datasets/import/", data)
        assert "or a dataset of the Hub" in answer.content.decode()
    answer = browser.post("/datasets/import/", {"name": "sums", "path": "inner.jsonl"})
    assert answer.headers["Location"].startswith("/datasets/versions/dsv-")
