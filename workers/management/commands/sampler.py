"""manage.py sampler: answers every sampling call of this installation."""

import asyncio
import socket
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from workers.shifts import run_until_told


class Command(BaseCommand):
    help = "Take sampling calls, and keep the servers busy that `manage.py serving` watches."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--name",
            default=f"sampler-{socket.gethostname()}",
            help="one of its own for each sampler; a restart takes its calls over",
        )

    def handle(self, *, name: str, **_: Any) -> None:
        asyncio.run(run_until_told(name))
