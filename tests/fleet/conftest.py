"""Fixtures: stores of reports on real servers, and reports."""

import secrets
from contextlib import AsyncExitStack

import pytest

from acgsperf import LatencyHistogram
from acgsperf.fleet import Report, store_of


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture(params=["redis", "postgresql"])
def url(request, servers):
    """The address of each kind of server."""
    return servers.redis_url if request.param == "redis" else servers.database_url


@pytest.fixture
async def open_store(url, namespace):
    """Open stores, by default of the same namespace on the same server."""
    async with AsyncExitStack() as stack:

        async def opened(url=url, namespace=namespace, **options):
            # The machine may be busy with other tests.
            return await stack.enter_async_context(store_of(url, namespace, **{"timeout": 30} | options))

        yield opened


@pytest.fixture
async def store(open_store):
    return await open_store()


def make_report(number=1, latencies_ns=(), **changes):
    """Return the report of an instance."""
    latency = LatencyHistogram()
    latency.record_many(latencies_ns)
    counts = {"sequence": 1, "seconds": 1.0, "failed": 0, "violations": 0, "missed": 0}
    return Report(**{"instance": f"{number:016x}", "latency": latency.encode()} | counts | changes)


@pytest.fixture
def report_of():
    return make_report
