"""A service with a dashboard, under uvicorn: `watched.py PORT [ROOT_PATH]`. Requests of /work make traffic."""

import asyncio
import json
import os
import random
import sys
from urllib.parse import parse_qs

import uvicorn
from prometheus_client import CollectorRegistry

from acgsperf import PerformanceService, Settings
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.dashboard import Dashboard
from acgsperf.metrics.prometheus import PerformanceCollector, exposition

TOKEN = "0123456789abcdef-token"


async def handler(request):
    await asyncio.sleep(0)
    return {"id": request["id"]}


class Application:
    """GET /work?requests=N&keys=K makes N requests of K keys; /about says what the process has used."""

    def __init__(self, service):
        self.service = service
        self.random = random.Random(1)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await self.service.open()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.service.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        query = parse_qs(scope["query_string"].decode())
        keys = int(query.get("keys", ["1000"])[0])
        for _ in range(int(query.get("requests", ["100"])[0])):
            await self.service.process_request({"id": int(self.random.paretovariate(0.6)) % keys})
            await asyncio.sleep(0)
        body = json.dumps({"pid": os.getpid()}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


def make_app(**options):
    service = PerformanceService(
        Settings(l1_cache_size=300, monitoring_interval_s=1, cache_namespace="shop"), handler=handler
    )
    registry = CollectorRegistry()
    dashboard = Dashboard(service, token=TOKEN, **options)
    app = PerformanceMiddleware(Application(service), metrics=exposition(registry), dashboard=dashboard)
    registry.register(PerformanceCollector(service, http=app))
    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(),
        port=int(sys.argv[1]),
        root_path=sys.argv[2] if len(sys.argv) > 2 else "",
        log_level="warning",
        ws="none",
    )
