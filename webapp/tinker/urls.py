"""The paths of the Tinker wire, below /api/v1/. Ids contain colons; names of checkpoints may."""

from django.urls import path, re_path

from webapp.tinker import (
    account_views,
    catalog_views,
    checkpoint_views,
    sampling_views,
    session_views,
    views,
)

RUN = "training_runs/<run_id>"
CHECKPOINT = f"{RUN}/checkpoints/<kind>/<name>"

urlpatterns = [
    path("healthz", views.healthz),
    path("client/config", views.config),
    path("client/dynamic_config", views.dynamic_config),
    path("telemetry", views.telemetry),
    path("auth/token", account_views.token),
    path("auth/apikey/me", account_views.own_key),
    path("billing/usage/events", account_views.usage),
    path("billing/usage/checkpoints/current", account_views.checkpoint_storage),
    path("audit", account_views.audit),
    path("create_session", views.create_session),
    path("sessions", session_views.sessions),
    path("sessions/search", session_views.search),
    path("sessions/<session_id>", session_views.session),
    path("sessions/<session_id>/project", session_views.project),
    path("sessions/<session_id>/trace_export", session_views.trace_export),
    path("sessions/<session_id>/finish", views.finish),
    # The log of a run. Polls and heartbeats are answered before Django: see door.py.
    path("create_model", views.create_model),
    path("get_info", views.get_info),
    path("forward_backward", views.forward_backward),
    path("create_custom_loss", views.create_custom_loss),
    path("optim_step", views.optim_step),
    path("save_weights", views.save_weights),
    path("save_weights_for_sampler", views.save_weights_for_sampler),
    path("save_weights_external", views.save_weights_external),
    path("load_weights", views.load_weights),
    # Sampling
    path("create_sampling_session", sampling_views.create_sampling_session),
    path("join_sampling_session", sampling_views.join),
    path("samplers/<sampler_id>", sampling_views.sampler),
    path("asample", sampling_views.asample),
    path("cancel_future", sampling_views.cancel_future),
    # What there is
    path("get_server_capabilities", catalog_views.capabilities),
    path("weights_info", checkpoint_views.weights_info),
    path("copy_weights", checkpoint_views.copy_weights),
    path("checkpoints", checkpoint_views.checkpoints),
    path("training_runs", catalog_views.training_runs),
    path(RUN, catalog_views.training_run),
    path(f"{RUN}/checkpoints", checkpoint_views.run_checkpoints),
    path(CHECKPOINT, checkpoint_views.checkpoint),
    path(f"{CHECKPOINT}/publish", checkpoint_views.publish),
    path(f"{CHECKPOINT}/ttl", checkpoint_views.ttl),
    path(f"{CHECKPOINT}/archive", checkpoint_views.archive),
    path(f"{CHECKPOINT}/external_weights_urls", checkpoint_views.external_weights_urls),
    re_path("", views.answer_unknown),
]
