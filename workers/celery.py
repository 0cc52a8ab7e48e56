"""The Celery app: says that there is work, never what it is. Rows hold the state."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

app = Celery("hone")
app.set_default()  # for every thread; the current app is a thread-local otherwise
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    task_ignore_result=True,
    task_default_queue="cpu",
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    imports=("workers.tasks", "workers.periodic"),  # a gpu worker adds workers.gpu, and torch
)
