"""Fixtures: services over every combination of tiers, with settings that do not depend on the environment."""

import secrets
from contextlib import AsyncExitStack, suppress

import pytest

from acgsperf import CacheError
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings


class Handler:
    """Answers with the id of the request, and records the requests."""

    def __init__(self):
        self.asked = []
        self.error = None

    async def __call__(self, request):
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return {"answer": request.get("id")}


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture(params=["l1", "l1,l2", "l1,l3", "l1,l2,l3"])
def tiers(request):
    return request.param


async def clear(service):
    # The test may have closed the service.
    with suppress(CacheError):
        await service.cache.clear()


@pytest.fixture
async def open_service(servers, handler):
    """Open services. Afterwards, close them and remove their entries from the servers."""
    async with AsyncExitStack() as stack:

        async def opened(tiers="l1", **changes):
            changes = {"cache_namespace": f"test-{secrets.token_hex(8)}", "db_pool_min_size": 1} | changes
            settings = Settings(
                redis_url=servers.redis_url if "l2" in tiers else None,
                database_url=servers.database_url if "l3" in tiers else None,
                **changes,
            )
            service = await stack.enter_async_context(PerformanceService(settings, handler=handler))
            stack.push_async_callback(clear, service)
            return service

        yield opened
