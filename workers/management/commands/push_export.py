"""manage.py push_export: an export that is ready, pushed to a repository of a Hub."""

import os
from getpass import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training.errors import InvalidInput
from webapp.checkpoints.models import Export
from workers.hub import push_export


class Command(BaseCommand):
    help = "Push an export to a Hub. The token is read from HF_TOKEN, or asked for, and not kept."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("export", help="its id, as the checkpoint's page has it")
        parser.add_argument("repo", help="name/of-the-repository; it is made where there is none")
        parser.add_argument("--public", action="store_true", help="new repositories are private")
        parser.add_argument("--endpoint", help="of another Hub than huggingface.co")

    def handle(
        self, *, export: str, repo: str, public: bool, endpoint: str | None, **_: Any
    ) -> None:
        row = Export.objects.select_related("checkpoint").filter(pk=export).first()
        if row is None:
            raise CommandError(f"There is no export {export}.")
        token = os.environ.get("HF_TOKEN") or getpass("Token of the Hub: ")
        try:
            url = push_export(row, repo, token, is_private=not public, endpoint=endpoint)
        except InvalidInput as error:
            raise CommandError(f"Nothing was pushed: {error}.") from error
        self.stdout.write(url)
