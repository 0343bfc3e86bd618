"""An application that answers two requests at a time, in 20 ms each. It prints its port.

Usage: overloaded.py [limit]
"""

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import uvicorn

from acgsperf.asgi import ConcurrencyLimit

if TYPE_CHECKING:
    import socket

workers = asyncio.Semaphore(2)


async def app(scope: Any, receive: Any, send: Any) -> None:
    async with workers:
        await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Server(uvicorn.Server):
    async def startup(self, sockets: "list[socket.socket] | None" = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


if __name__ == "__main__":
    served = ConcurrencyLimit(app) if sys.argv[1:] == ["limit"] else app
    Server(uvicorn.Config(served, port=0, log_level="critical", ws="none", lifespan="off")).run()
