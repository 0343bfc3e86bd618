"""A worker of a service with a metrics page. Its argument is the directory that the workers share. It prints its port.

/items/ID    answers with the service
/metrics     the page of all workers
"""

import sys
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from acgsperf import PerformanceService, Settings
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics.prometheus import PerformanceCollector, exposition


async def handler(request):
    return request["id"]


registry = CollectorRegistry()


@asynccontextmanager
async def lifespan(application):
    async with PerformanceService(Settings(workers_directory=sys.argv[1]), handler=handler) as service:
        registry.register(PerformanceCollector(service, http=app))
        yield {"service": service}


async def item(request):
    return PlainTextResponse(await request.state.service.process_request({"id": request.path_params["id"]}))


app = PerformanceMiddleware(
    Starlette(routes=[Route("/items/{id}", item)], lifespan=lifespan), metrics=exposition(registry)
)


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


if __name__ == "__main__":
    Server(uvicorn.Config(app, port=0, log_level="critical", ws="none")).run()
