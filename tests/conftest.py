"""What all tests share: the servers, private ones unless REDIS_URL and DATABASE_URL name others."""

from collections.abc import Iterator

import pytest

from acgsperf.workbench.embedded import Servers, embedded_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with embedded_servers() as running:
        yield running
