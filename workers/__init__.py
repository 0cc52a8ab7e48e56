"""The Celery processes that join the web application and training."""

# Django imports this package at start, so the web process sends its tasks through the same app.
from workers.celery import app as celery_app

__all__ = ["celery_app"]
