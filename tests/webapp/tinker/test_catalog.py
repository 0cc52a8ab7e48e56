"""What is listed to whom: own runs and checkpoints, and what others have published."""

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models.signals import post_init
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from tests.webapp.checkpoints.test_services import SAVED
from tests.webapp.tinker.conftest import Program
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import register_checkpoint
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


def register(name: str, seq: int, **columns: Any) -> Checkpoint:
    run = Run.objects.get()
    columns = {"kind": "training", "step": 1, **columns}
    return register_checkpoint(
        run=run, name=name, seq=seq, path=f"checkpoints/{name}", saved=SAVED, **columns
    )


def list_runs(program: Program, query: str = "") -> list[str]:
    runs = program.read(f"training_runs?{query}")["training_runs"]
    return [run["training_run_id"] for run in runs]


def test_a_run_of_others_is_seen_where_it_has_published_something(
    program: Program, stranger: Program, model_id: str
) -> None:
    secret, shared = register("secret", 1), register("shared", 2)
    stranger.read(f"training_runs/{model_id}")
    assert (stranger.status, list_runs(stranger, "access_scope=accessible")) == (404, [])
    program.send("POST", f"training_runs/{model_id}/checkpoints/weights/shared/publish", {})
    assert program.status == 204
    assert list_runs(stranger) == list_runs(stranger, "access_scope=owned") == []
    assert list_runs(stranger, "access_scope=accessible") == [model_id]
    run = stranger.read(f"training_runs/{model_id}")
    assert run["base_model"] == "tiny-chatml-1m"
    assert run["last_checkpoint"]["tinker_path"] == shared.tinker_path
    (listed,) = stranger.read(f"training_runs/{model_id}/checkpoints")["checkpoints"]
    assert (listed["tinker_path"], listed["public"]) == (shared.tinker_path, True)
    assert stranger.post("weights_info", tinker_path=shared.tinker_path)["lora_rank"] == 8
    assert (
        "no checkpoint" in stranger.post("weights_info", tinker_path=secret.tinker_path)["detail"]
    )
    assert stranger.read("checkpoints")["checkpoints"] == []


@pytest.mark.parametrize("verb", ["delete", "unpublish", "ttl"])
def test_what_others_have_published_is_not_changed(
    program: Program, stranger: Program, model_id: str, verb: str
) -> None:
    shared = register("shared", 2)
    Checkpoint.objects.update(is_public=True)
    path = f"training_runs/{model_id}/checkpoints/weights/shared"
    method, end = {
        "delete": ("DELETE", ""),
        "unpublish": ("DELETE", "/publish"),
        "ttl": ("PUT", "/ttl"),
    }[verb]
    stranger.send(method, path + end, {"ttl_seconds": 3600})
    assert stranger.status == 404
    shared.refresh_from_db()
    assert (shared.deleted_at, shared.is_public, shared.expires_at) == (None, True, None)


def test_many_runs_take_the_queries_of_one(
    program: Program, base_model: BaseModel, model_id: str
) -> None:
    headers = {"X-API-Key": program.secret}
    program.read("training_runs")  # from now on the key is remembered
    for number in (1, 2, 3):
        register(f"c{number}", number)
    with CaptureQueriesContext(connection) as one:
        (run,) = program.client.get("/api/v1/training_runs", headers=headers).json()[
            "training_runs"
        ]
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/c3"
    assert run["last_sampler_checkpoint"] is None
    for _ in range(5):
        program.open_model(base_model)
    with CaptureQueriesContext(connection) as six:
        runs = program.client.get("/api/v1/training_runs", headers=headers).json()["training_runs"]
    assert len(runs) == 6
    assert len(six) == len(one)


def test_of_many_checkpoints_the_last_of_each_kind_is_read(program: Program, model_id: str) -> None:
    for number in range(20):
        register(f"c{number}", number, kind="training" if number % 2 else "sampler")
    read: list[Checkpoint] = []

    def note(instance: Checkpoint, **_: Any) -> None:
        read.append(instance)

    post_init.connect(note, sender=Checkpoint)
    try:
        (run,) = program.read("training_runs")["training_runs"]
    finally:
        post_init.disconnect(note, sender=Checkpoint)
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/c19"
    assert run["last_sampler_checkpoint"]["checkpoint_id"] == "sampler_weights/c18"
    assert len(read) == 2


def test_a_scope_that_is_none_and_a_strange_project_are_refused(
    program: Program, stranger: Program
) -> None:
    assert "say owned or accessible" in program.read("training_runs?access_scope=all")["detail"]
    assert program.status == 400
    assert list_runs(program, f"project_id={program.actor.project.pk}") == []
    program.read(f"training_runs?project_id={stranger.actor.project.pk}")
    assert program.status == 404


def test_all_checkpoints_of_a_run_come_at_once(program: Program, model_id: str) -> None:
    for number in range(120):
        register(f"c{number}", number)
    told = program.read(f"training_runs/{model_id}/checkpoints")["checkpoints"]
    assert len(told) == 120
    assert len(program.read(f"training_runs/{model_id}/checkpoints?limit=7")["checkpoints"]) == 7
    page = program.read("checkpoints?limit=100&offset=100")
    assert (len(page["checkpoints"]), page["cursor"]["total_count"]) == (20, 120)


def test_metadata_is_a_map_of_strings(program: Program, model_id: str) -> None:
    register("half", 1, user_metadata={"step": 3, "tags": ["a"]})
    Run.objects.update(config={"renderer_name": "role_colon", "lr": 0.1})
    (listed,) = program.read("checkpoints")["checkpoints"]
    assert listed["user_metadata"] == {"step": "3", "tags": "['a']"}
    run = program.read(f"training_runs/{model_id}")
    assert run["user_metadata"] == {"renderer_name": "role_colon", "lr": "0.1"}


def test_a_lifetime_is_set_and_taken_away(program: Program, model_id: str) -> None:
    checkpoint = register("half", 1)
    path = f"training_runs/{model_id}/checkpoints/weights/half/ttl"
    program.send("PUT", path, {"ttl_seconds": 3600})
    checkpoint.refresh_from_db()
    assert (program.status, checkpoint.expires_at is not None) == (204, True)
    program.send("PUT", path, {"ttl_seconds": None})
    checkpoint.refresh_from_db()
    assert checkpoint.expires_at is None
    assert "from 3600" in program.send("PUT", path, {"ttl_seconds": 5})["detail"]
