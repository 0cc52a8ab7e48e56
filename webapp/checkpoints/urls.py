"""Pages of checkpoints."""

from django.urls import path

from webapp.checkpoints import views

urlpatterns = [
    path("checkpoints/", views.list_checkpoints, name="checkpoints"),
    path("checkpoints/lineage/", views.show_lineage, name="lineage"),
    # /checkpoints/<id>/
    path("checkpoints/<str:checkpoint_id>/", views.show_checkpoint, name="checkpoint"),
    path("checkpoints/<str:checkpoint_id>/download/", views.download, name="checkpoint-download"),
    path("checkpoints/<str:checkpoint_id>/keep/", views.keep, name="checkpoint-keep"),
    path("checkpoints/<str:checkpoint_id>/delete/", views.delete, name="checkpoint-delete"),
]
