"""Rows that need a checkpoint, each made by a function: retention leaves what they need."""

from typing import Any

from django.utils.timezone import now

from tests.webapp.cast import make_actor
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.lineage.conftest import make_run
from webapp.checkpoints.models import Checkpoint, Export
from webapp.datasets.records import Generation
from webapp.deployments.models import Deployment, DeploymentChange, SamplingCall, SamplingSession
from webapp.evals.models import Alias, AliasMove, EvalSuite, Evaluation
from webapp.firetitan.models import PromotedModel
from webapp.runs.models import Run, Session


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
