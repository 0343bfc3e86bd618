"""The P99 of a client of three servers, one of which is 10 times slower.

Run `pytest -s bench/test_balance.py`. It prints a table in Markdown. The servers are uvicorn in processes of their own.
"""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from acgsperf.balance import Balancer
from acgsperf.balance.transport import BalancedTransport

BACKEND = Path(__file__).parents[1] / "tests" / "balance" / "backend.py"
CALLERS = 20
REQUESTS = 200
# Between the requests of a caller. Without it, slow machines would measure their own queue for the processor.
PAUSE_S = 0.1
HEALTHY = (0.02, 0.02, 0.02)
ONE_SLOW = (0.02, 0.02, 0.2)


class RoundRobin(httpx.AsyncBaseTransport):
    """Sends requests to the servers in turn."""

    def __init__(self, endpoints: list[str]) -> None:
        self._next = itertools.cycle(map(httpx.URL, endpoints))
        self._transport = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = next(self._next)
        request.url = request.url.copy_with(scheme=origin.scheme, host=origin.host, port=origin.port)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


@contextmanager
def servers(seconds: tuple[float, ...]) -> Iterator[list[str]]:
    processes = [
        subprocess.Popen([sys.executable, BACKEND, str(pause)], stdout=subprocess.PIPE, text=True) for pause in seconds
    ]
    try:
        yield [f"http://127.0.0.1:{process.stdout.readline().strip()}" for process in processes if process.stdout]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def latencies(transport: httpx.AsyncBaseTransport) -> list[float]:
    """The sorted latencies of all requests, after connections have been opened."""
    took: list[float] = []

    async def caller(client: httpx.AsyncClient) -> None:
        for _ in range(REQUESTS):
            started = time.perf_counter()
            await client.get("/price")
            took.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_S)

    async with httpx.AsyncClient(transport=transport, base_url="http://prices", timeout=30) as client:
        await asyncio.gather(*(client.get("/price") for _ in range(6 * CALLERS)))
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return sorted(took)


def test_one_of_three_is_slow() -> None:
    print("\n\n| servers | balanced by | P50 | P99 |\n| --- | --- | ---: | ---: |")
    for name, seconds in (("three healthy", HEALTHY), ("one 10 times slower", ONE_SLOW)):
        for kind in ("`BalancedTransport`", "round robin"):
            with servers(seconds) as endpoints:
                transport = RoundRobin(endpoints) if kind == "round robin" else BalancedTransport(Balancer(endpoints))
                found = asyncio.run(latencies(transport))
            p50, p99 = (1_000 * found[int(share * len(found))] for share in (0.5, 0.99))
            print(f"| {name} | {kind} | {p50:.1f} ms | {p99:.1f} ms |")
