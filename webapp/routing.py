"""Which socket answers which path."""

from django.urls import path

from webapp.accounts.consumers import ProjectConsumer
from webapp.runs.consumers import RunConsumer

websocket_urlpatterns = [
    path("ws/projects/<str:project_id>/", ProjectConsumer.as_asgi()),
    path("ws/runs/<str:run_id>/", RunConsumer.as_asgi()),
]
