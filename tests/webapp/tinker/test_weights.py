"""Saves and loads over the wire: names, kinds, lifetimes, and models that begin with weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from tests.webapp.cast import make_base_model
from tests.webapp.checkpoints.test_services import SAVED
from tests.webapp.tinker.conftest import Program
from training.types import SavedWeights
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import register_checkpoint
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

BARE = SavedWeights(digest="e" * 64, size_bytes=10, has_optimizer=False, probe=SAVED.probe)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


@pytest.fixture
def run(model_id: str) -> Run:
    return Run.objects.get()


def register(run: Run, kind: str = "training", **columns: Any) -> Checkpoint:
    columns = {"name": "half", "seq": 5, "step": 2, "saved": SAVED, **columns}
    return register_checkpoint(run=run, kind=kind, path=f"checkpoints/{kind}", **columns)


def load(program: Program, checkpoint: Checkpoint, number: int = 1, **fields: Any) -> Any:
    fields = {"path": checkpoint.tinker_path, "optimizer": False, **fields}
    session = fields.pop("session_id", None) or program.open_session()
    return program.post("load_weights", session_id=session, model_seq_id=number, **fields)


def read_payload(run: Run, seq: int) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(bytes(run.operations.get(seq=seq).payload or b""))
    return payload


@pytest.mark.parametrize("name", ["000010", "final", "a b", "ü:1;2&c=+@", "a" * 199, "..x"])
@pytest.mark.parametrize("verb", ["save_weights", "save_weights_for_sampler"])
def test_a_name_may_be_what_its_address_can_hold(
    program: Program, run: Run, verb: str, name: str
) -> None:
    program.post(verb, model_id=run.model_id, seq_id=1, path=name)
    assert program.status == 200
    assert read_payload(run, 1)["name"] == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a?b", "a#b", "50%", "a\\b", " a", "a ", "a\nb", "\t", "a" * 200]
)
def test_any_other_name_is_refused(program: Program, run: Run, name: str) -> None:
    told = program.post("save_weights", model_id=run.model_id, seq_id=1, path=name)
    assert (program.status, "send 1 to 199 characters" in told["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(3600, 200), (315_360_000, 200), (3599, 400), (315_360_001, 400), (0, 400), (True, 400)],
)
def test_a_lifetime_is_an_hour_to_ten_years(
    program: Program, run: Run, seconds: int, status: int
) -> None:
    program.post("save_weights", model_id=run.model_id, seq_id=1, path="a", ttl_seconds=seconds)
    assert program.status == status


def test_only_a_state_is_kept_from_being_replaced(program: Program, run: Run) -> None:
    program.post("save_weights", model_id=run.model_id, seq_id=1, path="a")
    program.post("save_weights", model_id=run.model_id, seq_id=2, path="a", overwrite=True)
    program.post("save_weights_for_sampler", model_id=run.model_id, seq_id=3, path="a")
    assert [read_payload(run, seq)["overwrite"] for seq in (1, 2, 3)] == [False, True, True]


def test_a_sampling_client_takes_a_snapshot_or_follows(program: Program, run: Run) -> None:
    fields = {"model_id": run.model_id, "sampling_session_seq_id": 0}
    for seq, kind in ((1, {}), (2, {"kind": "snapshot"}), (3, {"kind": "inflight"})):
        program.post("save_weights_for_sampler", seq_id=seq, **fields, **kind)
        assert read_payload(run, seq).get("is_inflight", False) is (seq == 3)
    told = program.post("save_weights_for_sampler", seq_id=4, kind="live", **fields)
    assert told["detail"] == "kind is 'live': send snapshot or inflight."
    told = program.post("save_weights_for_sampler", seq_id=5, kind="inflight", path="a", **fields)
    assert "leave path out" in told["detail"]


@pytest.mark.parametrize("kind", ["training", "sampler"])
def test_a_model_begins_with_weights_of_either_kind(program: Program, run: Run, kind: str) -> None:
    checkpoint = register(run, kind, saved=SAVED if kind == "training" else BARE)
    promise = load(program, checkpoint, user_metadata={"a": "b"})
    branch = Run.objects.get(parent=checkpoint)
    assert promise["model_id"] == branch.model_id
    assert (branch.rank, branch.lora, branch.config) == (run.rank, run.lora, {"a": "b"})
    assert program.post("get_info", model_id=branch.model_id)["model_data"]["model_name"] == (
        "tiny-chatml-1m"
    )


def test_a_model_may_be_named_and_must_be_the_checkpoints(program: Program, run: Run) -> None:
    make_base_model("other")
    checkpoint = register(run)
    load(program, checkpoint, base_model="tiny-chatml-1m")
    assert program.status == 200
    told = load(program, checkpoint, base_model="other")
    assert (program.status, "not to other" in told["detail"]) == (400, True)
    told = load(program, checkpoint, base_model="acme/none")
    assert (program.status, "offers no base model acme/none" in told["detail"]) == (400, True)


def test_sampler_weights_have_no_optimizer_to_go_on_with(program: Program, run: Run) -> None:
    checkpoint = register(run, "sampler", saved=BARE)
    told = load(program, checkpoint, optimizer=True)
    assert (program.status, "without its optimizer" in told["detail"]) == (400, True)
    fields = {"model_id": run.model_id, "seq_id": 1, "path": checkpoint.tinker_path}
    told = program.post("load_weights", optimizer=True, **fields)
    assert (program.status, "without its optimizer" in told["detail"]) == (400, True)


def test_a_repeated_load_is_the_first_one_and_another_one_is_refused(
    program: Program, run: Run
) -> None:
    checkpoint, other = register(run), register(run, name="other", seq=6)
    session = program.open_session()
    promise = load(program, checkpoint, session_id=session)
    assert load(program, checkpoint, session_id=session) == promise
    for changed in (
        load(program, other, session_id=session),
        load(program, checkpoint, session_id=session, optimizer=True),
    ):
        assert "already used for another request" in changed["detail"]
    assert program.status == 400
    assert Run.objects.count() == 2


def test_weights_of_others_are_loaded_when_public_or_with_their_key(
    program: Program, stranger: Program, run: Run
) -> None:
    checkpoint = register(run)
    load(stranger, checkpoint)
    assert stranger.status == 404
    told = load(stranger, checkpoint, weights_access_token="tml-none")
    assert (stranger.status, "weights_access_token is unknown" in told["detail"]) == (400, True)
    load(stranger, checkpoint, weights_access_token=program.secret)
    assert stranger.status == 200
    Checkpoint.objects.update(is_public=True)
    load(stranger, checkpoint)
    assert stranger.status == 200
    branches = Run.objects.filter(parent=checkpoint)
    assert {branch.project for branch in branches} == {stranger.actor.project}


def test_a_model_that_exists_takes_weights_of_its_own_shape_alone(
    program: Program, run: Run
) -> None:
    checkpoint = register(run)
    fields = {"model_id": run.model_id, "path": checkpoint.tinker_path, "optimizer": False}
    program.post("load_weights", seq_id=1, **fields)
    assert program.status == 200
    session = program.open_session()
    lora = {"rank": 8, "train_unembed": False}
    narrow = program.post(
        "create_model",
        session_id=session,
        model_seq_id=0,
        base_model="tiny-chatml-1m",
        lora_config=lora,
    )["model_id"]
    told = program.post("load_weights", seq_id=1, **fields | {"model_id": narrow})
    assert program.status == 400
    assert "has train_unembed True, this model False" in told["detail"]
