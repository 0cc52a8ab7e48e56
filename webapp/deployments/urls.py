"""Pages of serving: deployments and the playground."""

from django.urls import path

from webapp.deployments import generation_views, playground, replica_views, views

urlpatterns = [
    path("deployments/", views.list_deployments, name="deployments"),
    path("deployments/new/", views.create, name="deployment-new"),
    # /deployments/<id>/
    path("deployments/<str:deployment_id>/", views.show_deployment, name="deployment"),
    path("deployments/<str:deployment_id>/change/", views.change, name="deployment-change"),
    path("deployments/<str:deployment_id>/roll-back/", views.roll_back_to_last, name="roll-back"),
    path("deployments/<str:deployment_id>/scale/", views.scale, name="deployment-scale"),
    path("deployments/<str:deployment_id>/stop/", views.stop, name="deployment-stop"),
    path("deployments/<str:deployment_id>/delete/", views.delete, name="deployment-delete"),
    path("deployments/<str:deployment_id>/traffic.csv", replica_views.save_traffic, name="traffic"),
    # /settings/serving/
    path("settings/serving/", replica_views.show_replicas, name="settings-serving"),
    path("settings/serving/traffic.csv", replica_views.save_all_traffic, name="traffic-all"),
    # /generations/<id>/
    path("generations/", generation_views.list_generations, name="generations"),
    path("generations/new/", generation_views.generate, name="generation-new"),
    path("generations/<str:generation_id>/", generation_views.show_generation, name="generation"),
    path(
        "generations/<str:generation_id>/pairs/<int:pair_id>/",
        generation_views.review,
        name="pair-review",
    ),
    path(
        "generations/<str:generation_id>/<str:verb>/", generation_views.act, name="generation-act"
    ),
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
