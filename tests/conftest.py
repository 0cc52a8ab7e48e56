"""What every test stands on: messages go nowhere, because none of them carries state."""

from collections.abc import Iterator

import pytest
from pytest_django.fixtures import Settings

from workers.celery import app


@pytest.fixture(autouse=True, scope="session")
def _no_broker() -> Iterator[None]:
    app.conf.update(broker_url="memory://", broker_transport_options={})
    yield
    app.close()


@pytest.fixture(autouse=True)
def _plain_static_files(settings: Settings) -> None:
    """Pages name their files without the manifest that only collectstatic writes."""
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
