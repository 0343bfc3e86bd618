"""Fixtures for pytest. Load them with `pytest_plugins = ["acgsperf.testing.fixtures"]` in `conftest.py`."""

from collections.abc import Iterator

import pytest

from acgsperf.testing.clock import ManualClock
from acgsperf.testing.embedded import ServerUrls, embedded_servers

__all__ = ["acgsperf_clock", "acgsperf_servers"]


@pytest.fixture
def acgsperf_clock() -> ManualClock:
    """A clock that the test moves."""
    return ManualClock()


@pytest.fixture(scope="session")
def acgsperf_servers() -> Iterator[ServerUrls]:
    """A real Redis and PostgreSQL for all tests; see `embedded_servers`. It needs the extra `embedded`."""
    with embedded_servers() as servers:
        assert servers.redis_url is not None
        assert servers.database_url is not None
        yield ServerUrls(servers.redis_url, servers.database_url)
