"""The overview, and pages of runs."""

from django.urls import path

from webapp.runs import overview

urlpatterns = [
    path("", overview.show_overview, name="overview"),
]
