"""What people see of the jobs and deployments of programs on the Fireworks SDK."""

from tests.webapp.cast import make_run, sign_in
from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_job
from webapp.deployments.models import Deployment
from webapp.deployments.services import create_deployment
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run


def test_a_run_is_shown_with_the_job_it_belongs_to(program: Program, base_model: BaseModel) -> None:
    run = make_run(program.actor, base_model)
    run.origin = Origin.FIRETITAN
    run.save()
    job = TrainerJob.objects.create(
        project=program.actor.project,
        job_id="training-api-service-666aea19",
        base_model=base_model,
        asked_model="accounts/fireworks/models/tiny-chatml-1m",
        inactivity_seconds=3600,
    )
    assert run.session is not None
    job.sessions.add(run.session)
    pages = sign_in(program.actor)
    assert "firetitan" in pages.get("/runs/").content.decode()
    shown = pages.get(f"/runs/{run.pk}/").content.decode()
    assert "firetitan" in shown
    assert "training-api-service-666aea19" in shown


def test_a_reference_is_called_one_and_not_an_adapter(
    program: Program, base_model: BaseModel
) -> None:
    trainer = Trainer(program=program, job=make_job(program, base_model))
    trainer.open_session()
    trainer.open_model(0)
    trainer.open_model(1, lora_config=None, base_only=True)
    pages = sign_in(program.actor)
    policy, reference = Run.objects.order_by("model_seq_id")
    shown = pages.get(f"/runs/{reference.pk}/").content.decode()
    assert "a reference: the base model" in shown
    assert "rank 1" not in shown
    assert "a reference: the base model" not in pages.get(f"/runs/{policy.pk}/").content.decode()


def test_a_deployment_is_shown_with_the_trainer_that_it_was_made_for(
    program: Program, base_model: BaseModel
) -> None:
    TrainerJob.objects.create(
        project=program.actor.project,
        job_id="training-api-service-666aea19",
        base_model=base_model,
        asked_model="tiny-chatml-1m",
        inactivity_seconds=3600,
    )
    name = f"accounts/{program.account}/rlorTrainerJobs/training-api-service-666aea19"
    body = {"baseModel": "tiny-chatml-1m", "hotLoadTrainerJob": name}
    program.post("deployments?deploymentId=serving", body)
    create_deployment(actor=program.actor, name="by-hand", base_model=base_model)
    pages = sign_in(program.actor)
    shown = {
        each.name: pages.get(f"/deployments/{each.pk}/").content.decode()
        for each in Deployment.objects.all()
    }
    assert "training-api-service-666aea19" in shown["serving"]
    assert "Fireworks SDK" in shown["serving"]
    assert "Fireworks SDK" not in shown["by-hand"]
