"""Services in processes of their own share their answers, and each hears what another one removes."""

import asyncio
import json
import secrets
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
REQUEST = {"action": "read", "id": 1}


class Worker:
    """A service in another process."""

    def __init__(self, process):
        self.process = process

    async def call(self, *call):
        self.process.stdin.write(json.dumps(call).encode() + b"\n")
        async with asyncio.timeout(60):
            return json.loads(await self.process.stdout.readline())

    async def answer(self):
        """Who has computed the answer to the request."""
        return (await self.call("process", REQUEST))["process"]


@asynccontextmanager
async def worker(options):
    process = await asyncio.create_subprocess_exec(
        sys.executable, WORKER, json.dumps(options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Worker(process)
    finally:
        process.stdin.close()
        await process.wait()
    assert process.returncode == 0


@pytest.fixture(params=["l2", "l3", "l2+l3"])
async def workers(request, servers):
    options = {
        "namespace": f"test-{secrets.token_hex(8)}",
        "redis_url": servers.redis_url if "l2" in request.param else None,
        "dsn": servers.database_url if "l3" in request.param else None,
    }
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(worker(options)) for _ in range(2)))


async def until(condition):
    """Wait until a condition is true, and return the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(10):
        while not await condition():
            pass
    return time.monotonic() - started


@pytest.mark.parametrize("removal", [("delete", REQUEST), ("clear",)])
async def test_an_answer_is_shared_by_all_workers_and_removed_from_l1_of_all(workers, removal):
    a, b = workers
    first = await a.answer()
    assert first == a.process.pid

    async def is_stored():
        return await a.call("stored") >= 1

    async def is_hot():
        return await b.answer() == first and await b.call("local", REQUEST) is not None

    # Otherwise the other one might compute an answer of its own.
    await until(is_stored)
    await until(is_hot)
    assert await a.call("local", REQUEST) is not None

    assert await a.call(*removal) is True

    async def is_gone():
        return await b.call("local", REQUEST) is None

    # The answer would be fresh for an hour.
    assert await until(is_gone) < 5
    assert await b.answer() == b.process.pid
    assert await a.answer() in {a.process.pid, b.process.pid}
