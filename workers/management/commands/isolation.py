"""manage.py isolation: whether the tenants of a worker touch each other, asked and answered."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.core.errors import UserError
from webapp.fleet.isolation import request_isolation_test
from webapp.fleet.models import IsolationTest

LOOK_SECONDS = 0.5


class Command(BaseCommand):
    help = "Make an isolation test on a gpu worker, and wait for what it says."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("worker")
        parser.add_argument("base_model", help="one that the worker holds")
        parser.add_argument("--wait", type=float, default=120.0, help="seconds, at most")

    def handle(self, *, worker: str, base_model: str, wait: float, **_: Any) -> None:
        try:
            test = request_isolation_test(actor=None, worker=worker, base_model=base_model)
        except UserError as error:
            raise CommandError(error.message) from error
        self.tell(wait_for(test, wait))

    def tell(self, test: IsolationTest) -> None:
        if test.status == IsolationTest.Status.FAILED:
            raise CommandError(test.error)
        if not test.is_over:
            raise CommandError(f"{test.pk} has not ended: the worker is busy. Ask for it by REST.")
        for row in test.differences:
            share = "no number" if row["share"] is None else f"{row['share']:.1e}"
            rounding = f"{row['tolerance']:.0e} is rounding in {test.dtype}"
            self.stdout.write(f"{row['quantity']}\t{share} of the largest number ({rounding})")
        if not test.is_passed:
            raise CommandError(f"{test.pk}: the tenants are not isolated.")
        self.stdout.write(f"{test.pk}: passed in {test.seconds:.1f} s.")


def wait_for(test: IsolationTest, seconds: float) -> IsolationTest:
    until = time.monotonic() + seconds
    while not test.is_over and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        test.refresh_from_db()
    return test
