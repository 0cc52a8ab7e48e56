"""Which app answers which path."""

from django.contrib import admin
from django.urls import include, path

from webapp.tinker import conformance_views, session_views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("rest/", include("webapp.rest_urls")),
    path("api/v1/", include("webapp.tinker.urls")),
    path("", include("webapp.firetitan.urls")),
    path("", include("webapp.core.urls")),
    path("", include("webapp.accounts.urls")),
    path("", include("webapp.fleet.urls")),
    path("", include("webapp.runs.urls")),
    path("", include("webapp.datasets.urls")),
    path("", include("webapp.lineage.urls")),  # before a checkpoint of that name
    path("", include("webapp.checkpoints.urls")),
    path("", include("webapp.deployments.urls")),
    path("", include("webapp.evals.urls")),
    path("traces/<str:session_id>", session_views.trace, name="session-trace"),
    path("settings/conformance/", conformance_views.show, name="settings-conformance"),
]
