"""manage.py model add | list | remove: the base models this installation offers."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.core.errors import UserError
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model, remove_base_model


class Command(BaseCommand):
    help = "Offer model directories under the names clients ask for."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add = actions.add_parser("add", help="offer a directory")
        add.add_argument("path")
        add.add_argument(
            "--name", action="append", required=True, help="may be given several times"
        )
        actions.add_parser("list", help="what is offered")
        remove = actions.add_parser("remove", help="stop offering; the directory stays")
        remove.add_argument("name")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, f"run_{action}")(**options)
        except UserError as error:
            raise CommandError(error.message) from error

    def run_add(self, *, path: str, name: list[str], **_: Any) -> None:
        base_model = add_base_model(path=path, names=name)
        self.stdout.write(f"{', '.join(name)}: {base_model.num_parameters:,} parameters, {path}")

    def run_list(self, **_: Any) -> None:
        for base_model in BaseModel.objects.prefetch_related("names"):
            names = ", ".join(row.name for row in base_model.names.all())
            self.stdout.write(f"{names}\t{base_model.num_parameters:,}\t{base_model.path}")

    def run_remove(self, *, name: str, **_: Any) -> None:
        remove_base_model(name=name)
        self.stdout.write(f"{name} is no longer offered.")
