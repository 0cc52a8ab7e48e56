"""What every test stands on: messages go nowhere, because none of them carries state."""

from collections.abc import Iterator, Sequence

import pytest
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from hypothesis import settings as generated
from pytest_django.fixtures import Settings
from pytest_django.plugin import DjangoDbBlocker

from tests.vllm_server import real_vllm, vllm_process
from workers.celery import app

__all__ = ["real_vllm", "vllm_process"]  # fixtures for all tests, of one session

# The same examples in every run; `--hypothesis-profile search` looks for new ones.
generated.register_profile("steady", derandomize=True, database=None, deadline=None)
generated.register_profile("search", generated.get_profile("steady"), derandomize=False)
generated.load_profile("steady")

# Only here, and where the real vLLM is asked, real processes work in real time, on a machine that
# others keep busy: a single hiccup is no defect, and one that repeats still fails. Elsewhere
# nothing hangs on time: there a test that fails once is wrong, and running it again would hide it.
# Each rerun is told with its traceback.
IN_REAL_TIME = ("tests/e2e", "tests/workers/vllm")
END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
PAGES_FAILED = "a page has failed"  # a defect, however seldom


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    for item in items:
        is_placed = any(item.path.is_relative_to(config.rootpath / each) for each in IN_REAL_TIME)
        if is_placed or "real_vllm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=PAGES_FAILED))


@pytest.fixture(autouse=True, scope="session")
def _no_broker() -> Iterator[None]:
    app.conf.update(broker_url="memory://", broker_transport_options={})
    yield
    app.close()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """PostgreSQL drops no database while a thread that has no work is connected to it."""
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(END_OTHERS)


@pytest.fixture(autouse=True)
def _plain_static_files(settings: Settings) -> None:
    """Pages name their files without the manifest that only collectstatic writes."""
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}


@pytest.fixture(autouse=True)
def _unbroken_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are one transaction; a loop that renews its connection would end it."""
    renew = BaseDatabaseWrapper.close_if_unusable_or_obsolete

    def renew_between(connection: BaseDatabaseWrapper) -> None:
        if not connection.in_atomic_block:
            renew(connection)

    monkeypatch.setattr(BaseDatabaseWrapper, "close_if_unusable_or_obsolete", renew_between)
