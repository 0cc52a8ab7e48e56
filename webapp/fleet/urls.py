"""Settings pages of base models and workers."""

from django.urls import path

from webapp.fleet import views

urlpatterns = [
    path("settings/models/", views.list_models, name="settings-models"),
    path("settings/models/remove/", views.remove_model, name="model-remove"),
    path("settings/workers/", views.show_workers, name="settings-workers"),
    path("settings/workers/isolation/", views.test_isolation, name="isolation-test"),
]
