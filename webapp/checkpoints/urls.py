"""Pages of checkpoints, and their files."""

from django.urls import path

from webapp.checkpoints import file_views, views

urlpatterns = [
    path("checkpoints/", views.list_checkpoints, name="checkpoints"),
    path("checkpoints/lineage/", views.show_lineage, name="lineage"),
    # /checkpoints/<id>/
    path("checkpoints/<str:checkpoint_id>/", views.show_checkpoint, name="checkpoint"),
    path("checkpoints/<str:checkpoint_id>/download/", views.download, name="checkpoint-download"),
    path("checkpoints/<str:checkpoint_id>/keep/", views.keep, name="checkpoint-keep"),
    path("checkpoints/<str:checkpoint_id>/delete/", views.delete, name="checkpoint-delete"),
    # What a program fetches by a link that it was given, without a key.
    path("files/<str:checkpoint_id>/<str:file>", file_views.fetch_file, name="checkpoint-file"),
]
