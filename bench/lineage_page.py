"""Prints the milliseconds of the lineage's page: with folds, and with all nodes drawn."""

import os
import time

import django
from django.conf import settings
from django.core.management import call_command

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
django.setup()
# Files by their own names: nothing is collected for a bench.
PLAIN = "django.contrib.staticfiles.storage.StaticFilesStorage"
settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": PLAIN}}

from django.test import Client  # noqa: E402 - Django first
from django.urls import reverse  # noqa: E402

from bench.lineage_rows import NUM_NODES, seed_project  # noqa: E402

TIMES = 9


def main() -> None:
    call_command("migrate", verbosity=0)
    client = Client(headers={"host": "localhost"})
    client.force_login(seed_project())
    for folds, query in (("folded", ""), ("all drawn", "?fold=0"), ("searched", "?q=step-4")):
        print(NUM_NODES, folds.replace(" ", "-"), f"{measure(client, query):.1f}")


def measure(client: Client, query: str) -> float:
    """The median, without the first, which compiles the templates."""
    seconds = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        answer = client.get(reverse("lineage") + query)
        seconds.append(time.perf_counter() - started)
        assert answer.status_code == 200, answer.content[:300]
    return 1000 * sorted(seconds[1:])[TIMES // 2]


main()
