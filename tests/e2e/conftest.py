"""One installation for all tests of the whole product: it takes seconds to start."""

from collections.abc import Iterator

import pytest

from tests.e2e.live import Live


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    installation = Live(tmp_path_factory.mktemp("live"))
    installation.start()
    yield installation
    installation.stop()
