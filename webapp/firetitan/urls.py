"""The paths of the Fireworks dialect. Verbs follow a colon; no path ends with a slash."""

from django.urls import include, path, re_path

from webapp.firetitan import deployment_views, endpoints, job_views, model_views, views

ACCOUNT = "v1/accounts/<account>"
DEPLOYMENTS = f"{ACCOUNT}/deployments"
DEPLOYMENT = f"{DEPLOYMENTS}/<deployment_id>"
JOBS = f"{ACCOUNT}/rlorTrainerJobs"
JOB = f"{JOBS}/<job_id>"
SHAPE = f"{ACCOUNT}/trainingShapes/<shape>/versions"
TRAINER = "training/v1/rlorTrainerJobs/<account>/<job_id>/api/v1/"

urlpatterns = [
    path("v1/accounts", views.accounts),
    path(ACCOUNT, views.account),
    path(JOBS, job_views.jobs),
    path(f"{JOB}:resume", job_views.resume),
    path(f"{JOB}:cancel", job_views.cancel),
    path(f"{JOB}:executeTrainStep", job_views.execute_train_step),
    path(f"{JOB}/checkpoints", model_views.checkpoints),
    path(JOB, job_views.job),
    path(f"{ACCOUNT}/checkpoints/<name>:promote", model_views.promote),
    path(f"{ACCOUNT}/models/<model_id>", model_views.model),
    path(DEPLOYMENTS, deployment_views.deployments),
    path(f"{DEPLOYMENT}:scale", deployment_views.scale),
    path(DEPLOYMENT, deployment_views.deployment),
    path("hot_load/v1/models/hot_load", deployment_views.hot_load),
    path(SHAPE, job_views.shape_versions),
    path(f"{SHAPE}/<version>", job_views.shape_version),
    re_path("^v1/accounts/", endpoints.answer_unknown),
    path(TRAINER, include("webapp.firetitan.trainer_urls")),
    re_path("^training/v1/", endpoints.answer_unknown),
    re_path("^hot_load/", endpoints.answer_unknown),
]
