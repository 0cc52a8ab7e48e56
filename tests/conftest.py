"""What every test stands on: messages go nowhere, because none of them carries state."""

from collections.abc import Iterator

import pytest

from workers.celery import app


@pytest.fixture(autouse=True, scope="session")
def _no_broker() -> Iterator[None]:
    app.conf.update(broker_url="memory://", broker_transport_options={})
    yield
    app.close()
