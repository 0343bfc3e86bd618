"""`make demo`: three instances of a service that share a private Redis and PostgreSQL, with traffic and a dashboard.

`python -m acgsperf.dashboard.demo` runs until Ctrl-C. With `--seconds N`, it ends by itself.
"""

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from acgsperf import interrupts
from acgsperf.asgi.types import Receive, Scope, Send
from acgsperf.pool import ConnectionPool
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.timeouts import time_limit

__all__ = ["main"]

_INSTANCES: Final = 3
_ITEMS: Final = 20_000
_L1_SIZE: Final = 2_000
_CALLERS: Final = 4
_PAUSE_S: Final = 0.004
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS demo_items (id integer PRIMARY KEY, price integer NOT NULL);
    INSERT INTO demo_items SELECT id, id * 7 % 1000 FROM generate_series(0, 19999) AS id ON CONFLICT DO NOTHING;
"""


class Shop:
    """An ASGI application whose service answers requests for items from PostgreSQL.

    Args:
        seed: of the requests that it makes to itself.
    """

    def __init__(self, seed: int) -> None:
        settings = Settings(
            redis_url=os.environ["REDIS_URL"],
            database_url=os.environ["DATABASE_URL"],
            cache_namespace="demo",
            l1_cache_size=_L1_SIZE,
            l1_prediction=True,
            l2_ttl_default=120,
            db_pool_min_size=2,
            db_pool_max_size=8,
            monitoring_interval_s=5,
        )
        self.service: PerformanceService = PerformanceService(settings, handler=self._load)
        self._random = random.Random(seed)

    async def _load(self, request: Any) -> dict[str, int]:
        async with self.service.pools.get("default").acquire() as connection:
            price = await connection.fetchval("SELECT price FROM demo_items WHERE id = $1", request["id"])
        return {"id": request["id"], "price": price}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for /items/ID."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        status, answer = 404, b"not found"
        if scope["type"] == "http" and scope["path"].startswith("/items/"):
            number = int(scope["path"].rpartition("/")[2]) % _ITEMS
            status, answer = 200, repr(await self.service.process_request({"id": number})).encode()
        headers = [(b"content-length", str(len(answer)).encode())]
        scope["route"] = "/items/{id}"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.service:
            callers = [asyncio.create_task(self._call()) for _ in range(_CALLERS)]
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _call(self) -> None:
        """Request items without end: some of them often, others in sequences."""
        cache = self.service.cache
        while True:
            number = int(self._random.paretovariate(0.5)) % _ITEMS
            for step in range(8 if self._random.random() < 0.02 else 1):
                await self.service.process_request({"id": (number + step) % _ITEMS})
            if self._random.random() < 0.005:
                await cache.set(f"note {number}", number)
            await asyncio.sleep(_PAUSE_S * self._random.random())


def _serve(port: int) -> None:
    """Run one instance."""
    import uvicorn
    from prometheus_client import CollectorRegistry

    from acgsperf.asgi import PerformanceMiddleware
    from acgsperf.dashboard import Dashboard
    from acgsperf.metrics.prometheus import PerformanceCollector, exposition

    shop = Shop(seed=port)
    registry = CollectorRegistry()
    dashboard = Dashboard(shop.service, name=f"demo, port {port}", show_keys=False)
    app = PerformanceMiddleware(shop, metrics=exposition(registry), dashboard=dashboard)
    registry.register(PerformanceCollector(shop.service, http=app))
    uvicorn.run(app, port=port, log_level="warning", access_log=False, ws="none")


@contextmanager
def _instances(redis_url: str, database_url: str) -> Iterator[list[int]]:
    """Start the instances, and return their ports. They are ended with the context."""
    environment = os.environ | {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
    with ExitStack() as exits:
        ports = [_free_port() for _ in range(_INSTANCES)]
        for port in ports:
            command = [sys.executable, "-m", "acgsperf.dashboard.demo", "--serve", str(port)]
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            exits.callback(_end, process)
        yield ports


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _prepare(database_url: str, ports: list[int]) -> None:
    """Make the table of items, and wait until every instance answers."""
    async with ConnectionPool(database_url, name="demo", min_size=0, max_size=1) as pool:
        await pool.execute(_TABLE)
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                await writer.wait_closed()
                break


async def _run(database_url: str, ports: list[int], seconds: float | None) -> None:
    async with time_limit(120):
        await _prepare(database_url, ports)
    first, *others = (f"http://127.0.0.1:{port}/dashboard/" for port in ports)
    print(f"Dashboard: {first}")
    print(f"The other instances: {', '.join(others)}")
    print(f"In a terminal: acgsperf top http://127.0.0.1:{ports[0]}/metrics")
    print("Ctrl-C ends the demo.", flush=True)
    await asyncio.sleep(86_400 * 365 if seconds is None else seconds)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Runs three instances of a service with traffic and a dashboard.")
    parser.add_argument("--seconds", type=float, help="end after so many seconds")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        _serve(arguments.serve)
        return
    from acgsperf.workbench.embedded import embedded_servers

    interrupts.install()
    try:
        with interrupts.Held() as signals, embedded_servers() as servers:
            assert servers.redis_url is not None
            assert servers.database_url is not None
            with _instances(servers.redis_url, servers.database_url) as ports:
                signals.run(_run(servers.database_url, ports, arguments.seconds))
    except SystemExit as ending:
        sys.exit(ending.code)


if __name__ == "__main__":
    main()
