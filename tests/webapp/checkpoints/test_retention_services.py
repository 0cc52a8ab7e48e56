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
from webapp.datasets.records import Generation
from webapp.deployments.models import Deployment, DeploymentChange, SamplingCall, SamplingSession
from webapp.evals.models import Alias, AliasMove, EvalSuite, Evaluation
from webapp.firetitan.models import PromotedModel
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Run, Session

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


def need_deployment(checkpoint: Checkpoint) -> None:
    Deployment.objects.create(
        project=checkpoint.project,
        name="live",
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        status="ready",
    )


def need_change(checkpoint: Checkpoint, *, status: str = "loading") -> None:
    deployment = Deployment.objects.create(
        project=checkpoint.project, name="live", base_model=checkpoint.base_model, status="ready"
    )
    DeploymentChange.objects.create(deployment=deployment, checkpoint=checkpoint, status=status)


def need_way_back(checkpoint: Checkpoint) -> None:
    need_change(checkpoint, status="served")
    deployment = Deployment.objects.get()
    DeploymentChange.objects.create(deployment=deployment, checkpoint=None, status="served")


def need_alias(checkpoint: Checkpoint) -> None:
    Alias.objects.create(project=checkpoint.project, name="prod", checkpoint=checkpoint)


def need_alias_way_back(checkpoint: Checkpoint) -> None:
    """It was moved away and back again: what a roll-back leads to now is what came before."""
    current = make_checkpoint(checkpoint.run, name="now", step=9, deleted_at=now())
    alias = Alias.objects.create(project=checkpoint.project, name="prod", checkpoint=current)
    AliasMove.objects.create(alias=alias, checkpoint=current, previous=checkpoint, outcome="moved")
    AliasMove.objects.create(alias=alias, checkpoint=current, outcome="rolled_back")


def need_alias_test(checkpoint: Checkpoint) -> None:
    alias = Alias.objects.create(project=checkpoint.project, name="prod")
    AliasMove.objects.create(alias=alias, checkpoint=checkpoint, outcome="waiting")


def need_evaluation(checkpoint: Checkpoint) -> None:
    suite = EvalSuite.objects.create(project=checkpoint.project, name="s", graders=[])
    Evaluation.objects.create(
        project=checkpoint.project,
        suite=suite,
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        status="running",
    )


def need_judge(checkpoint: Checkpoint) -> None:
    graders = [{"name": "judge", "settings": {"by": [checkpoint.pk]}}]
    EvalSuite.objects.create(project=checkpoint.project, name="s", graders=graders)


def need_teacher(checkpoint: Checkpoint) -> None:
    config = {"teacher": {"checkpoint": checkpoint.pk}}
    Run.objects.create(
        project=checkpoint.project,
        name="student",
        base_model=checkpoint.base_model,
        rank=1,
        config=config,
    )


def need_branch(checkpoint: Checkpoint) -> None:
    Run.objects.create(
        project=checkpoint.project,
        name="branch",
        base_model=checkpoint.base_model,
        rank=1,
        parent=checkpoint,
        status="paused",
    )


def need_stage(checkpoint: Checkpoint) -> None:
    Run.objects.create(
        project=checkpoint.project,
        name="next stage",
        base_model=checkpoint.base_model,
        rank=1,
        after=checkpoint.run,
    )


def need_policy(checkpoint: Checkpoint) -> None:
    """A policy that waits for a worker. Its judge is done, and came after the run."""
    model = checkpoint.base_model
    columns: dict[str, Any] = {"project": checkpoint.project, "base_model": model, "rank": 1}
    judge = Run.objects.create(name="judge", after=checkpoint.run, status="done", **columns)
    Run.objects.create(name="policy", after=judge, **columns)


def need_path(checkpoint: Checkpoint) -> None:
    Run.objects.create(
        project=checkpoint.project,
        name="student",
        base_model=checkpoint.base_model,
        rank=1,
        config={"teacher": checkpoint.tinker_path},
    )


def need_pairs(checkpoint: Checkpoint) -> None:
    Generation.objects.create(
        project=checkpoint.project,
        name="pairs",
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        documents=[],
        options={},
        status="asking",
    )


def need_sampling(checkpoint: Checkpoint) -> None:
    SamplingCall.objects.create(
        project=checkpoint.project,
        purpose="rest",
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
        payload={},
    )


def need_client(checkpoint: Checkpoint) -> None:
    user = checkpoint.project.members.get()
    session = Session.objects.create(project=checkpoint.project, user=user)
    SamplingSession.objects.create(
        project=checkpoint.project,
        session=session,
        seq_id=1,
        base_model=checkpoint.base_model,
        checkpoint=checkpoint,
    )


def need_export(checkpoint: Checkpoint) -> None:
    Export.objects.create(project=checkpoint.project, checkpoint=checkpoint, kind="peft")


def need_promotion(checkpoint: Checkpoint) -> None:
    PromotedModel.objects.create(project=checkpoint.project, model_id="mine", checkpoint=checkpoint)


def need_pin(checkpoint: Checkpoint) -> None:
    Checkpoint.objects.filter(pk=checkpoint.pk).update(is_pinned=True)


def need_public(checkpoint: Checkpoint) -> None:
    Checkpoint.objects.filter(pk=checkpoint.pk).update(is_public=True)


def need_other_project(checkpoint: Checkpoint) -> None:
    bob = make_actor("bob")
    theirs = make_run(bob, checkpoint.base_model, "theirs", parent=checkpoint, status="done")
    make_checkpoint(theirs, name="theirs")


NEEDS = [
    *(need_pin, need_public, need_deployment, need_change, need_way_back, need_alias),
    *(need_alias_way_back, need_alias_test, need_evaluation, need_judge, need_teacher),
    *(need_branch, need_stage, need_sampling, need_client, need_export, need_promotion),
    *(need_other_project, need_policy, need_path, need_pairs),
]


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
