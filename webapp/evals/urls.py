"""Pages of suites, evaluations and their comparison."""

from django.urls import path

from webapp.evals import (
    alias_views,
    answer_views,
    compare_views,
    exports,
    matrix_views,
    suite_views,
    views,
)

urlpatterns = [
    path("evals/", views.list_suites, name="evals"),
    path("evals/new/", views.evaluate, name="evaluation-new"),
    path("evals/compare/", compare_views.show_comparison, name="eval-compare"),
    path("evals/compare/answers/", answer_views.show_answers, name="eval-answers"),
    path("evals/compare/csv/", exports.download_csv, name="eval-compare-csv"),
    path("evals/compare/html/", exports.download_html, name="eval-compare-html"),
    path("evals/matrix/", matrix_views.show_matrix, name="eval-matrix"),
    path("evals/steps/", matrix_views.show_steps, name="eval-steps"),
    path("evals/steps/csv/", matrix_views.download_steps, name="eval-steps-csv"),
    # /evals/aliases/
    path("evals/aliases/", alias_views.list_aliases, name="aliases"),
    path("evals/aliases/new/", alias_views.create, name="alias-new"),
    path("evals/aliases/<str:alias_id>/", alias_views.show_alias, name="alias"),
    path("evals/aliases/<str:alias_id>/rule/", alias_views.edit_rule, name="alias-rule"),
    path("evals/aliases/<str:alias_id>/move/", alias_views.move, name="alias-move"),
    path("evals/aliases/<str:alias_id>/rollback/", alias_views.rollback, name="alias-rollback"),
    path("evals/aliases/<str:alias_id>/call-off/", alias_views.cancel_move, name="alias-call-off"),
    path("evals/aliases/<str:alias_id>/delete/", alias_views.delete, name="alias-delete"),
    # /evals/suites/
    path("evals/suites/new/", suite_views.create, name="suite-new"),
    path("evals/suites/new/task/", suite_views.create_task, name="suite-new-task"),
    path("evals/suites/new/grader/", suite_views.show_grader, name="suite-grader"),
    path("evals/suites/new/no-grader/", suite_views.remove_grader, name="suite-grader-removed"),
    path("evals/suites/<str:suite_id>/", views.show_suite, name="suite"),
    # /evals/<id>/
    path("evals/<str:evaluation_id>/", views.show_evaluation, name="evaluation"),
    path("evals/<str:evaluation_id>/cancel/", views.cancel, name="evaluation-cancel"),
]
