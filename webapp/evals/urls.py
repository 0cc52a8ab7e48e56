"""Pages of suites, evaluations and their comparison."""

from django.urls import path

from webapp.evals import compare_views, views

urlpatterns = [
    path("evals/", views.list_suites, name="evals"),
    path("evals/new/", views.evaluate, name="evaluation-new"),
    path("evals/compare/", compare_views.show_comparison, name="eval-compare"),
    # /evals/suites/
    path("evals/suites/new/", views.create, name="suite-new"),
    path("evals/suites/<str:suite_id>/", views.show_suite, name="suite"),
    # /evals/<id>/
    path("evals/<str:evaluation_id>/", views.show_evaluation, name="evaluation"),
    path("evals/<str:evaluation_id>/cancel/", views.cancel, name="evaluation-cancel"),
]
