"""The page of the lineage."""

from django.urls import path

from webapp.lineage import views

urlpatterns = [path("checkpoints/lineage/", views.show_lineage, name="lineage")]
