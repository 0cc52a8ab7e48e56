"""A rule of real rows: its dry run, its application by hand and by the beat, and what stays."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db.models import ManyToOneRel
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import make_actor, make_viewer, sign_in
from tests.webapp.checkpoints.needs import (
    NEEDS,
    need_alias,
    need_branch,
    need_deployment,
    need_evaluation,
    need_export,
    need_sampling,
)
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.lineage.conftest import evaluate, make_run, make_version
from webapp.accounts.models import Actor, AuditEntry
from webapp.accounts.services import create_key
from webapp.checkpoints import retention_services
from webapp.checkpoints.models import Checkpoint, Export, RetentionRule
from webapp.checkpoints.retention_needs import list_needs
from webapp.checkpoints.retention_plans import make_plan
from webapp.checkpoints.retention_rules import Keep
from webapp.checkpoints.retention_services import apply_active_rules, apply_rule, save_rule
from webapp.checkpoints.services import find_folder, remove_folder, set_pinned
from webapp.core.errors import UserError
from webapp.deployments.models import Deployment, SamplingCall
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Run

LONG_AGO = timedelta(days=40)
RETENTION = "/checkpoints/retention/"


@pytest.fixture
def alice(db: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Actor:
    monkeypatch.setattr(settings, "HONE_HOME", tmp_path)
    return make_actor("alice")


@pytest.fixture
def base_model(db: None) -> BaseModel:
    base_model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return base_model


@pytest.fixture
def run(alice: Actor, base_model: BaseModel) -> Run:
    return make_run(alice, base_model, status="done")


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    return EvalSuite.objects.create(
        project=alice.project,
        name="tone",
        dataset_version=make_version(alice),
        graders=[{"name": "exact_match"}],
    )


def save(run: Run, step: int, **columns: Any) -> Checkpoint:
    """With a folder on the disk, forty days ago."""
    path = f"checkpoints/{run.pk}/{step}"
    folder = Path(settings.HONE_HOME) / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"w" * 10)
    columns = {"name": f"step-{step}", "created_at": now() - LONG_AGO, **columns}
    return make_checkpoint(run, step=step, seq=step, path=path, **columns)


def list_doomed(actor: Actor, **keep: Any) -> list[str]:
    plan = make_plan(actor.project.pk, Keep(**keep))
    return sorted(item.checkpoint.name for item in plan.doomed)


def list_alive(run: Run) -> list[int]:
    return list(
        run.checkpoints.filter(deleted_at=None).order_by("step").values_list("step", flat=True)
    )


def test_a_dry_run_says_how_many_how_much_and_why(alice: Actor, run: Run, suite: EvalSuite) -> None:
    saved = [save(run, step, size_bytes=2**30) for step in (1, 2, 3, 4)]
    for checkpoint, score in zip(saved, (0.9, 0.2, 0.1, 0.3), strict=True):
        evaluate(suite, checkpoint, score)
    Export.objects.create(
        project=alice.project,
        checkpoint=saved[1],
        kind="peft",
        status=Export.Status.READY,
        size_bytes=2**30,
    )
    plan = make_plan(alice.project.pk, Keep(best=1, suite=suite.pk, last=1))
    assert plan.describe() == (
        "Would delete 2 of 4, free 3.0 GiB; keeps best 1 by tone, last of each run, pinned, every"
        " parent of a kept checkpoint, everything served or named by an alias."
    )
    assert {item.checkpoint.step: list(item.reasons) for item in plan.items} == {
        1: ["best"],
        2: [],
        3: [],
        4: ["last"],
    }
    assert list_alive(run) == [1, 2, 3, 4]


def test_the_newest_score_counts(alice: Actor, run: Run, suite: EvalSuite) -> None:
    first, second = save(run, 1), save(run, 2)
    evaluate(suite, first, 0.9)
    evaluate(suite, second, 0.5)
    evaluate(suite, first, 0.1)
    assert list_doomed(alice, best=1, suite=suite.pk) == ["step-1"]


@pytest.mark.parametrize("need", NEEDS)
def test_what_is_needed_stays_whatever_the_rule_says(alice: Actor, run: Run, need: Any) -> None:
    wanted, other = save(run, 2), save(run, 1)
    need(wanted)
    save_rule(actor=alice, keep={"every": 999}, is_active=False)
    assert apply_rule(actor=alice).num_deleted == 1
    assert list_alive(run) == [2]
    assert find_folder(wanted).exists()
    assert not find_folder(other).exists()


def test_every_relation_to_a_checkpoint_was_thought_of() -> None:
    """A new one is to be decided upon: does its row need the weights?"""
    told_of = {
        *("deployments", "changes", "sampling_calls", "sampling_sessions", "aliases"),
        *("evaluations", "exports", "promoted_models", "branches", "deltas"),
    }
    history = {"samples", "hot_loads"}  # of what was; they keep their rows
    named = {
        relation.get_accessor_name()
        for relation in Checkpoint._meta.related_objects
        if isinstance(relation, ManyToOneRel) and relation.get_accessor_name()
    }
    assert {name for name in named if name != "+"} == told_of | history


def test_stopped_deployments_and_ended_work_need_nothing(alice: Actor, run: Run) -> None:
    checkpoint = save(run, 1)
    for need in (need_deployment, need_evaluation, need_sampling, need_export, need_branch):
        need(checkpoint)
    Deployment.objects.update(status="stopped")
    Evaluation.objects.update(status="done")
    SamplingCall.objects.update(status="done")
    Export.objects.update(status="ready")
    Run.objects.filter(parent=checkpoint).update(status="done")
    assert list_needs(alice.project.pk) == {}


def test_deltas_go_before_what_they_build_on(alice: Actor, run: Run) -> None:
    base = save(run, 1, type="base")
    first = save(run, 2, type="delta", previous=base)
    save(run, 3, type="delta", previous=first)
    save(run, 4, type="base")
    save_rule(actor=alice, keep={"last": 1}, is_active=False)
    assert apply_rule(actor=alice).num_deleted == 3
    assert list_alive(run) == [4]


def test_what_has_become_needed_since_the_look_stays(
    alice: Actor, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two transactions somebody pins one, names one and evaluates one."""
    saved = {step: save(run, step) for step in range(1, 8)}
    monkeypatch.setattr(retention_services, "BATCH", 2)
    acts = [
        lambda: set_pinned(actor=alice, checkpoint=saved[1], is_pinned=True),
        lambda: need_alias(saved[2]),
        lambda: need_evaluation(saved[3]),
    ]

    def remove_and_act(checkpoint: Checkpoint) -> None:
        remove_folder(checkpoint)
        while acts:
            acts.pop()()

    monkeypatch.setattr(retention_services, "remove_folder", remove_and_act)
    save_rule(actor=alice, keep={"last": 1}, is_active=False)
    assert apply_rule(actor=alice).num_deleted == 3
    assert list_alive(run) == [1, 2, 3, 7]


def test_a_rule_that_is_changed_while_it_is_applied_stops(
    alice: Actor, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 8):
        save(run, step)
    monkeypatch.setattr(retention_services, "BATCH", 2)

    def change(_: Checkpoint) -> None:
        RetentionRule.objects.update(keep={"days": 99}, changed_at=now())

    monkeypatch.setattr(retention_services, "remove_folder", change)
    rule = save_rule(actor=alice, keep={"last": 1}, is_active=False)
    assert apply_rule(actor=alice, seen_at=rule.changed_at.isoformat()).num_deleted == 2
    with pytest.raises(UserError, match="changed the rule meanwhile"):
        apply_rule(actor=alice, seen_at=rule.changed_at.isoformat())


def test_the_beat_applies_active_rules_of_their_own_project_alone(
    alice: Actor, run: Run, suite: EvalSuite, base_model: BaseModel
) -> None:
    bob = make_actor("bob")
    theirs = make_run(bob, base_model, "theirs", status="done")
    for step in (1, 2):
        save(run, step)
        save(theirs, step)
    rule = save_rule(actor=alice, keep={"last": 1}, is_active=False)
    save_rule(actor=bob, keep={"last": 2}, is_active=True)
    assert apply_active_rules() == 0
    save_rule(actor=alice, keep={"last": 1}, is_active=True)
    assert apply_active_rules() == 1
    assert (list_alive(run), list_alive(theirs)) == ([2], [1, 2])
    rule.refresh_from_db()
    assert rule.applied_at is not None
    entry = AuditEntry.objects.get(event="checkpoint_retention_applied")
    assert (entry.project, entry.user, entry.details["deleted"]) == (alice.project, None, 1)
    assert apply_active_rules() == 0
    assert AuditEntry.objects.filter(event="checkpoint_retention_applied").count() == 1


def test_a_rule_whose_suite_is_gone_deletes_nothing(
    alice: Actor, run: Run, suite: EvalSuite
) -> None:
    save(run, 1)
    save_rule(actor=alice, keep={"best": 1, "suite": suite.pk}, is_active=True)
    suite.delete()
    assert apply_active_rules() == 0
    with pytest.raises(UserError, match="no such suite"):
        apply_rule(actor=alice)
    assert list_alive(run) == [1]


def test_another_projects_suite_is_no_suite(alice: Actor, suite: EvalSuite) -> None:
    with pytest.raises(UserError, match="no such suite"):
        save_rule(actor=make_actor("bob"), keep={"best": 1, "suite": suite.pk}, is_active=False)


def test_a_viewer_looks_and_changes_nothing(alice: Actor, run: Run) -> None:
    save(run, 1)
    save(run, 2)
    save_rule(actor=alice, keep={"last": 1}, is_active=False)
    client = sign_in(make_viewer(alice))
    page = client.get(RETENTION)
    assert "Would delete 1 of 2" in page.content.decode()
    assert "Save rule" not in page.content.decode()
    for url, body in (
        (RETENTION, {"last": 1}),
        (f"{RETENTION}apply/", {}),
        (f"{RETENTION}drop/", {}),
        ("/checkpoints/chosen/", {"chosen": "x", "action": "delete", "back": "?"}),
    ):
        assert client.post(url, body).status_code == 400
    assert list_alive(run) == [1, 2]


def test_the_plan_takes_few_queries_however_much_there_is(
    alice: Actor,
    run: Run,
    suite: EvalSuite,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for step in range(1, 30):
        evaluate(suite, save(run, step), 0.5)
    with django_assert_max_num_queries(25):
        make_plan(alice.project.pk, Keep(best=1, suite=suite.pk))


def test_the_page_tries_a_rule_out_saves_applies_and_drops_it(alice: Actor, run: Run) -> None:
    client = sign_in(alice)
    for step in (1, 2, 3):
        save(run, step)
    tried = client.get(f"{RETENTION}?dry_run=1&last=2").content.decode()
    assert "Would delete 1 of 3" in tried
    assert "Nothing was saved or deleted" in tried
    assert not RetentionRule.objects.exists()
    assert client.post(RETENTION, {"last": 1}).status_code == 302
    page = client.get(f"{RETENTION}?only=goes").content.decode()
    assert "Would delete 2 of 3" in page
    assert ("step-1" in page, "step-3" in page) == (True, False)
    rule = RetentionRule.objects.get()
    said = client.post(f"{RETENTION}apply/", {"seen_at": rule.changed_at.isoformat()}, follow=True)
    assert "2 checkpoints deleted" in said.content.decode()
    assert list_alive(run) == [3]
    client.post(f"{RETENTION}drop/")
    assert not RetentionRule.objects.exists()
    for query in ("dry_run=1", "dry_run=1&last=-3", "dry_run=1&best=2", "dry_run=1&suite=x&best=1"):
        assert (query, client.get(f"{RETENTION}?{query}").status_code) == (query, 400)


@pytest.fixture
def headers(alice: Actor) -> dict[str, str]:
    _, secret = create_key(actor=alice, name="test")
    return {"authorization": f"Bearer {secret}"}


def test_rest_has_all_of_it(alice: Actor, run: Run, headers: dict[str, str]) -> None:
    client = Client(headers=headers)
    saved = [save(run, step) for step in (1, 2, 3, 4)]
    assert client.get("/rest/retention").status_code == 404
    json: dict[str, Any] = {"content_type": "application/json"}
    tried = client.post("/rest/retention/plan", {"last": 1}, **json).json()
    assert (tried["num_deleted"], tried["num_checkpoints"], tried["next_offset"]) == (3, 4, None)
    assert tried["items"][-1]["reasons"] == []
    refused = client.put("/rest/retention", {"keep": {}}, **json)
    assert (refused.status_code, "keeps nothing" in refused.json()["error"]["message"]) == (
        400,
        True,
    )
    rule = client.put("/rest/retention", {"keep": {"last": 1}}, **json).json()
    assert (rule["keep"], rule["is_active"]) == ({"last": 1}, False)
    pinned = client.put(f"/rest/checkpoints/{saved[0].pk}/pin").json()
    assert pinned["is_pinned"] is True
    assert client.get("/rest/retention/plan").json()["num_deleted"] == 2
    assert client.post("/rest/retention/apply").json() == {"num_deleted": 2, "freed_bytes": 2000}
    assert list_alive(run) == [1, 4]
    assert client.delete(f"/rest/checkpoints/{saved[0].pk}/pin").json()["is_pinned"] is False
    need_deployment(saved[3])
    ids = [saved[0].pk, saved[3].pk, "ckpt-nothing"]
    many = client.post("/rest/checkpoints/many", {"ids": ids, "action": "delete"}, **json).json()
    assert (many["done"], many["size_bytes"]) == ([saved[0].pk], 1000)
    assert [each["checkpoint"] for each in many["refused"]] == ids[1:]
    assert client.delete("/rest/retention").status_code == 204
    odd = client.post("/rest/checkpoints/many", {"ids": [], "action": "delete"}, **json)
    assert odd.status_code == 400


def test_many_of_the_list_are_pinned_kept_and_deleted_at_once(alice: Actor, run: Run) -> None:
    client = sign_in(alice)
    saved = [save(run, step, expires_at=now() + LONG_AGO) for step in (1, 2, 3)]
    body = {"chosen": [each.pk for each in saved[:2]], "back": "?q=step"}
    answer = client.post("/checkpoints/chosen/", {**body, "action": "pin"})
    assert (answer.status_code, answer["location"]) == (302, "/checkpoints/?q=step")
    assert Checkpoint.objects.filter(is_pinned=True, expires_at=None).count() == 2
    client.post("/checkpoints/chosen/", {**body, "chosen": [saved[2].pk], "action": "keep"})
    assert not Checkpoint.objects.exclude(expires_at=None).exists()
    need_deployment(saved[0])
    answer = client.post("/checkpoints/chosen/", {**body, "action": "delete"}, follow=True)
    page = answer.content.decode()
    assert "1 checkpoint deleted" in page
    assert "in use by a deployment" in page
    assert list_alive(run) == [1, 3]
    for odd in (
        {**body, "action": "burn"},
        {"action": "pin", "back": "?"},
        {**body, "action": "pin", "back": "https://elsewhere"},
        {**body, "action": "pin", "chosen": ["x"] * 1 + [str(n) for n in range(1001)]},
    ):
        assert client.post("/checkpoints/chosen/", odd).status_code == 400


def test_a_stranger_changes_nothing_of_another_project(alice: Actor, run: Run) -> None:
    checkpoint = save(run, 1)
    client = sign_in(make_actor("charlie"))
    body = {"chosen": [checkpoint.pk], "back": "?", "action": "delete"}
    client.post("/checkpoints/chosen/", body)
    assert client.post(f"/checkpoints/{checkpoint.pk}/pin/").status_code == 404
    assert list_alive(run) == [1]
