"""Pages of checkpoints, and their files."""

from django.urls import path

from webapp.checkpoints import export_views, file_views, retention_views, storage_views, views

urlpatterns = [
    path("checkpoints/", views.list_checkpoints, name="checkpoints"),
    path("checkpoints/chosen/", retention_views.act_on_chosen, name="checkpoints-chosen"),
    path("checkpoints/retention/", retention_views.show_rule, name="retention"),
    path("checkpoints/retention/apply/", retention_views.apply, name="retention-apply"),
    path("checkpoints/retention/drop/", retention_views.drop, name="retention-drop"),
    # /checkpoints/<id>/
    path("checkpoints/<str:checkpoint_id>/", views.show_checkpoint, name="checkpoint"),
    path("checkpoints/<str:checkpoint_id>/download/", views.download, name="checkpoint-download"),
    path("checkpoints/<str:checkpoint_id>/keep/", views.keep, name="checkpoint-keep"),
    path("checkpoints/<str:checkpoint_id>/pin/", views.pin, name="checkpoint-pin"),
    path("checkpoints/<str:checkpoint_id>/delete/", views.delete, name="checkpoint-delete"),
    path("checkpoints/<str:checkpoint_id>/exports/", export_views.create, name="export-new"),
    # /exports/<id>/
    path("exports/<str:export_id>/download/", export_views.download, name="export-download"),
    path("exports/<str:export_id>/delete/", export_views.delete, name="export-delete"),
    path("settings/storage/", storage_views.show_storage, name="settings-storage"),
    # What a program fetches by a link that it was given, without a key.
    path("files/<str:checkpoint_id>/<str:file>", file_views.fetch_file, name="checkpoint-file"),
]
