"""A project with its actor, a real tokenizer, and a state folder of its own."""

import json
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django.fixtures import Settings

from tests.webapp.cast import make_actor, sign_in
from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import create_version
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model
from workers import ingest

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
GOOD = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
BAD = {"messages": [{"role": "user", "content": "1+1"}]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Settings) -> Path:
    settings.HONE_HOME = tmp_path
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "incoming"
    (tmp_path / "incoming").mkdir()
    return tmp_path


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def charlie(db: None) -> Actor:
    """A stranger to Alice's project."""
    return make_actor("charlie")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return add_base_model(path=str(TINY), names=["tiny/chat"])


def make_file(*rows: object, name: str = "rows.jsonl") -> SimpleUploadedFile:
    text = "\n".join(json.dumps(row) for row in rows)
    return SimpleUploadedFile(name, text.encode())


def upload(actor: Actor, *rows: object, name: str = "sums") -> DatasetVersion:
    """Uploaded and validated, as a worker does it."""
    version = create_version(actor=actor, name=name, upload=make_file(*rows))
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    return version
