"""The Celery processes that join the web application and training."""
