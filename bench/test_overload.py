"""An application that gets three times the load that it can answer, with and without `ConcurrencyLimit`.

Run `pytest -s bench/test_overload.py`. It prints a table in Markdown. The application runs under uvicorn in a
process of its own; it answers two requests at a time, in 20 ms each.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

APPLICATION = Path(__file__).with_name("overloaded.py")
CAPACITY = 100
SECONDS = 10


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, APPLICATION, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


async def sent(client: aiohttp.ClientSession, seconds: float, load: float) -> tuple[float, float, float]:
    """Send requests at a steady rate; return answers per second, P99 in ms, and refusals per second.

    The first two seconds and the last one do not count: the limit needs a moment to adapt, and a request of the last
    second would have less time for its answer.
    """
    took: list[float] = []
    refused = 0

    async def request() -> None:
        nonlocal refused
        started = time.perf_counter()
        async with client.get("/") as response:
            await response.read()
        if not begun + 2 <= started < end - 1:
            return
        if response.status == 503:
            refused += 1
        else:
            took.append(time.perf_counter() - started)

    begun = time.perf_counter()
    end = begun + seconds
    number = 0
    async with asyncio.TaskGroup() as requests:
        while (now := time.perf_counter()) < end:
            while number < (now - begun) * load * CAPACITY:
                number += 1
                requests.create_task(request())
            await asyncio.sleep(0.001)
        in_time = len(took)
    took.sort()
    return in_time / (seconds - 3), 1_000 * took[int(0.99 * len(took))], refused / (seconds - 3)


def test_overload() -> None:
    print("\n\n| load | limit | answers/s | P99 | refused/s |\n| --- | --- | ---: | ---: | ---: |")

    figures: dict[tuple[str, float], tuple[float, float]] = {}

    async def run(address: str, name: str) -> None:
        # The client of HTTPX looks at all connections for each request: with hundreds it would be what is overloaded.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(address, connector=connector) as client:
            for load in (0.8, 3.0):
                answers, p99_ms, refused = await sent(client, SECONDS, load)
                print(f"| {load} x | {name} | {answers:.0f} | {p99_ms:.0f} ms | {refused:.0f} |")
                figures[name, load] = answers, p99_ms

    for name, arguments in (("`ConcurrencyLimit`", ("limit",)), ("none", ())):
        with served(*arguments) as address:
            asyncio.run(run(address, name))
    answers, p99_ms = figures["`ConcurrencyLimit`", 3.0]
    assert answers >= 0.85 * CAPACITY
    assert p99_ms <= 3 * figures["`ConcurrencyLimit`", 0.8][1]
