"""The paths of a trainer, below its job's. Polls and heartbeats are answered before Django."""

from django.urls import path

from webapp.firetitan import trainer_views as views

urlpatterns = [
    path("healthz", views.healthz),
    path("telemetry", views.telemetry),
    path("client/config", views.client_config),
    path("create_session", views.create_session),
    path("get_server_capabilities", views.capabilities),
    path("create_model", views.create_model),
    path("get_info", views.get_info),
    path("forward", views.forward),
    path("forward_backward", views.forward_backward),
    path("optim_step", views.optim_step),
    path("save_weights", views.save_weights),
    path("save_weights_for_sampler", views.save_weights_for_sampler),
    path("load_weights", views.load_weights),
    path("load_adapter", views.load_adapter),
    path("list_checkpoints", views.list_checkpoints),
    path("unload_model", views.unload_model),
]
