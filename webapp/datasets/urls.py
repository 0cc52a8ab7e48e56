"""Pages of datasets."""

from django.urls import path

from webapp.datasets import views

urlpatterns = [
    path("datasets/", views.list_datasets, name="datasets"),
    path("datasets/new/", views.upload, name="dataset-new"),
    path("datasets/<str:dataset_id>/", views.show_dataset, name="dataset"),
    # /datasets/versions/<id>/
    path("datasets/versions/<str:version_id>/", views.show_version, name="version"),
    path("datasets/versions/<str:version_id>/status/", views.show_status, name="version-status"),
    path("datasets/versions/<str:version_id>/preview/", views.show_preview, name="version-preview"),
    path("datasets/versions/<str:version_id>/decide/", views.decide_version, name="version-decide"),
    path("datasets/versions/<str:version_id>/delete/", views.remove_version, name="version-delete"),
]
