"""The paths of the Fireworks dialect. Verbs follow a colon; no path ends with a slash."""

from django.urls import path, re_path

from webapp.firetitan import endpoints, views

ACCOUNT = "v1/accounts/<account>"
TRAINER = "training/v1/rlorTrainerJobs/<account>/<job_id>/api/v1/"

urlpatterns = [
    path("v1/accounts", views.accounts),
    path(ACCOUNT, views.account),
    re_path("^v1/accounts/", endpoints.answer_unknown),
    re_path("^training/v1/", endpoints.answer_unknown),
    re_path("^hot_load/", endpoints.answer_unknown),
]
