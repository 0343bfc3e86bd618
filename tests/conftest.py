"""Servers that tests share: those that REDIS_URL and DATABASE_URL name, or private ones."""

from collections.abc import Iterator

import pytest

from acgsperf.workbench.embedded import Servers, embedded_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with embedded_servers() as found:
        yield found
