"""Pages of datasets."""

from django.urls import path

from webapp.datasets import analysis_views, views

urlpatterns = [
    path("datasets/", views.list_datasets, name="datasets"),
    path("datasets/new/", views.upload, name="dataset-new"),
    path("datasets/import/", views.import_rows, name="dataset-import"),
    path("datasets/<str:dataset_id>/", views.show_dataset, name="dataset"),
    # /datasets/versions/<id>/
    path("datasets/versions/<str:version_id>/", views.show_version, name="version"),
    path("datasets/versions/<str:version_id>/status/", views.show_status, name="version-status"),
    path("datasets/versions/<str:version_id>/preview/", views.show_preview, name="version-preview"),
    path("datasets/versions/<str:version_id>/decide/", views.decide_version, name="version-decide"),
    path("datasets/versions/<str:version_id>/delete/", views.remove_version, name="version-delete"),
    path(
        "datasets/versions/<str:version_id>/rows.<str:format>",
        views.download_rows,
        name="version-download",
    ),
    path(
        "datasets/versions/<str:version_id>/derive/", analysis_views.derive, name="version-derive"
    ),
    path(
        "datasets/versions/<str:version_id>/derive/count/",
        analysis_views.count_derived,
        name="version-derive-count",
    ),
    path(
        "datasets/versions/<str:version_id>/checks/",
        analysis_views.show_checks,
        name="version-checks",
    ),
    path(
        "datasets/versions/<str:version_id>/tokens/",
        analysis_views.show_tokens,
        name="version-tokens",
    ),
    path(
        "datasets/versions/<str:version_id>/changes/",
        analysis_views.show_changes,
        name="version-changes",
    ),
    path(
        "datasets/versions/<str:version_id>/analyses/<str:kind>/",
        analysis_views.show_analysis,
        name="version-analysis",
    ),
]
