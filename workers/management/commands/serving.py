"""manage.py serving: keeps the sampling servers of this installation running."""

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from workers.supervisor import AlreadyServed, lock_serving, supervise_until_told


class Command(BaseCommand):
    help = "Start, watch, restart and stop sampling servers, or watch the one at HONE_SAMPLING_URL."

    def handle(self, **_: Any) -> None:
        try:
            with lock_serving():
                asyncio.run(supervise_until_told())
        except AlreadyServed as error:
            raise CommandError(str(error)) from error
