"""The overview, and pages of runs."""

from django.urls import path, register_converter
from django.urls.converters import StringConverter

from webapp.runs import (
    finding_views,
    group_views,
    launch,
    overview,
    rlhf_views,
    rollout_pages,
    threshold_views,
    views,
)


class PartConverter(StringConverter):
    """The pieces of a run's page that refetch themselves."""

    regex = "stats|actions|annotations|findings"


register_converter(PartConverter, "run_part")

urlpatterns = [
    path("", overview.show_overview, name="overview"),
    path("runs/", views.show_runs, name="runs"),
    path("runs/new/", launch.launch_run, name="run-new"),
    path("runs/new/forecast/", launch.preview_run, name="run-forecast"),
    path("runs/groups/", group_views.show_groups, name="run-groups"),
    path("runs/groups/<str:group_id>/", group_views.show_group, name="run-group"),
    path(
        "runs/groups/<str:group_id>/points", group_views.read_group_points, name="run-group-points"
    ),
    path("runs/groups/<str:group_id>/points.csv", group_views.download_group, name="run-group-csv"),
    path("runs/groups/<str:group_id>/stop/", group_views.stop_runs, name="run-group-stop"),
    path("runs/new/rlhf/", rlhf_views.launch_rlhf, name="run-new-rlhf"),
    path("runs/new/rlhf/forecast/", rlhf_views.preview_rlhf, name="run-rlhf-forecast"),
    path("runs/<str:run_id>/", views.show_run, name="run"),
    path("runs/<str:run_id>/metrics", views.read_points, name="run-metrics"),
    path("runs/<str:run_id>/metrics.csv", views.download_points, name="run-metrics-csv"),
    path("runs/<str:run_id>/learning-rate/", views.change_learning_rate, name="run-rate"),
    path("runs/<str:run_id>/kl-coefficient/", views.change_kl_coefficient, name="run-kl"),
    path("runs/<str:run_id>/parts/<run_part:part>/", views.show_part, name="run-part"),
    path("settings/diagnostics/", threshold_views.show_thresholds, name="settings-diagnostics"),
    path(
        "runs/<str:run_id>/findings/<slug:key>/dismiss/",
        finding_views.dismiss,
        name="finding-dismiss",
    ),
    path(
        "runs/<str:run_id>/findings/<slug:key>/restore/",
        finding_views.restore,
        name="finding-restore",
    ),
    path(
        "runs/<str:run_id>/rollouts/<int:rollout_id>/",
        rollout_pages.show_rollout,
        name="run-rollout",
    ),
    path("runs/<str:run_id>/samples/<int:sample_id>/", views.show_tokens, name="run-tokens"),
    path("runs/<str:run_id>/actions/<str:action>/", views.act_on_run, name="run-act"),
]
