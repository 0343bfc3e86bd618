"""A service in a process of its own. It reads calls from its input, one a line, and prints what they return.

`["process", request]`, `["local", request]` (what L1 has), `["stored"]` (how many entries the background has stored),
`["delete", request]`, `["clear"]`.
"""

import asyncio
import json
import os
import sys

from acgsperf import LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.fingerprint import request_key
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings


async def handler(request):
    return {"process": os.getpid()}


async def call(service, name, request=None):
    match name:
        case "process":
            return await service.process_request(request)
        case "local":
            return service.cache.get_local(request_key(request))
        case "stored":
            return service.cache.stats().write_backs
        case "delete":
            return (await service.cache.delete(request_key(request))).everywhere
        case "clear":
            return (await service.cache.clear()).everywhere


def cache_of(namespace, redis_url, dsn):
    """Return a cache whose tiers are patient, because the machine may be busy with other tests."""
    return TieredCache(
        LRUCache(100),
        RedisTier(redis_url, deadline=5) if redis_url else None,
        PostgresTier(dsn, deadline=5) if dsn else None,
        namespace=namespace,
        promotion_threshold=1,
        deadline=5,
    )


async def main():
    cache = cache_of(**json.loads(sys.argv[1]))
    async with cache, PerformanceService(Settings(), handler=handler, cache=cache) as service:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await call(service, *json.loads(line))), flush=True)


asyncio.run(main())
