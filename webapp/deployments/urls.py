"""Pages of serving: deployments and the playground."""

from django.urls import path

from webapp.deployments import playground, views

urlpatterns = [
    path("deployments/", views.list_deployments, name="deployments"),
    path("deployments/new/", views.create, name="deployment-new"),
    # /deployments/<id>/
    path("deployments/<str:deployment_id>/", views.show_deployment, name="deployment"),
    path("deployments/<str:deployment_id>/change/", views.change, name="deployment-change"),
    path("deployments/<str:deployment_id>/stop/", views.stop, name="deployment-stop"),
    # /playground/
    path("playground/", playground.show_playground, name="playground"),
    path("playground/answers/<int:call_id>/", playground.show_answer, name="answer"),
    path("playground/answers/<int:call_id>/cancel/", playground.cancel, name="answer-cancel"),
    path("playground/answers/<int:call_id>/keep/", playground.keep, name="answer-keep"),
    path(
        "playground/answers/<int:call_id>/alternatives/",
        playground.list_alternatives,
        name="answer-alternatives",
    ),
]
