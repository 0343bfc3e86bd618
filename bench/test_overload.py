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

import httpx

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


async def sent(client: httpx.AsyncClient, seconds: float, load: float) -> tuple[float, float, float]:
    """Send requests at a steady rate; return answers per second, P99 in ms, and refusals per second.

    The first two seconds and the last one do not count: the limit needs a moment to adapt, and a request of the last
    second would have less time for its answer.
    """
    took: list[float] = []
    refused = 0

    async def request() -> None:
        nonlocal refused
        started = time.perf_counter()
        response = await client.get("/")
        if not begun + 2 <= started < end - 1:
            return
        if response.status_code == 503:
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

    async def run(address: str, name: str) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
            for load in (0.8, 3.0):
                answers, p99_ms, refused = await sent(client, SECONDS, load)
                print(f"| {load} x | {name} | {answers:.0f} | {p99_ms:.0f} ms | {refused:.0f} |")

    for name, arguments in (("`ConcurrencyLimit`", ("limit",)), ("none", ())):
        with served(*arguments) as address:
            asyncio.run(run(address, name))
