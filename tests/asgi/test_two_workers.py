"""Two workers, in processes of their own, with one Redis or PostgreSQL: each hears what the other invalidates."""

import asyncio
import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

WORKER = Path(__file__).with_name("worker.py")
# As if they were behind a load balancer: the responses of both belong to the same host.
HOST = {"Host": "app.test"}


@pytest.fixture(scope="module")
def addresses():
    """The addresses of two workers."""
    processes = [subprocess.Popen([sys.executable, WORKER], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        yield [f"http://127.0.0.1:{int(process.stdout.readline())}" for process in processes]
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


@pytest.fixture(params=["l2", "l3", "l2+l3"])
async def workers(request, addresses, servers, tmp_path):
    """Clients of two workers whose database says that the price is "old"."""
    file = tmp_path / "price"
    file.write_text("old")
    options = {
        "file": str(file),
        "namespace": "http-" + secrets.token_hex(4),
        "redis_url": servers.redis_url if "l2" in request.param else None,
        "dsn": servers.database_url if "l3" in request.param else None,
    }
    async with AsyncExitStack() as stack:
        clients = []
        for address in addresses:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, headers=HOST, timeout=30))
            (await client.post("/open", json=options)).raise_for_status()
            stack.push_async_callback(client.post, "/close")
            clients.append(client)
        yield clients


async def price(client, path="/price", **headers):
    """The price that a worker tells, and whether the response is from its cache."""
    answer = await client.get(path, headers=headers)
    assert answer.status_code == 200
    return answer.text, "age" in answer.headers


async def until(condition):
    """Wait until a condition is true, and return the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(10):
        while not await condition():
            pass
    return time.monotonic() - started


async def heat(a, b):
    """Put the response of `/price` into L1 of both workers."""
    assert await price(a) == ("old", False)
    # The response is stored once it has gone out.
    await until(lambda: _is_hot(a))
    await until(lambda: _is_hot(b))


async def _is_hot(client):
    return (await price(client))[1] and (await client.get("/local")).text == "1"


async def test_what_one_worker_invalidates_leaves_the_l1_of_the_other(workers):
    a, b = workers
    await heat(a, b)
    assert (await a.post("/price", content="new")).status_code == 200
    # The response says that it is fresh for a minute.
    assert await until(lambda: _is(b, "new")) < 5
    assert (await price(a))[0] == "new"


async def test_clear_in_one_worker_empties_the_l1_of_the_other(workers):
    a, b = workers
    await heat(a, b)
    assert (await a.post("/clear")).status_code == 200

    async def is_empty():
        return (await b.get("/local")).text == "0"

    assert await until(is_empty) < 5
    assert await price(b) == ("old", False)


async def _is(client, expected):
    return (await price(client))[0] == expected


@pytest.mark.parametrize("path", ["/price", "/price?vary"])
@pytest.mark.parametrize("write", ["POST", "clear"])
async def test_a_response_that_a_write_of_another_worker_has_superseded_is_sent_and_not_stored(workers, path, write):
    a, b = workers
    slow = asyncio.create_task(price(a, path, **{"X-Hold": "1"}))
    await a.get("/held")
    if write == "POST":
        await b.post(path, content="new")
    else:
        await b.post("/price?another", content="new")
        await b.post("/clear")
    await a.get("/release")
    assert await slow == ("old", False)
    for client in (a, b, a):
        assert (await price(client, path))[0] == "new"


@pytest.mark.parametrize("path", ["/price", "/price?vary"])
async def test_a_slow_response_that_nothing_has_superseded_is_stored_for_both(workers, path):
    a, b = workers
    slow = asyncio.create_task(price(a, path, **{"X-Hold": "1"}))
    await a.get("/held")
    await a.get("/release")
    assert await slow == ("old", False)

    async def is_cached():
        return await price(b, path, **{"Cache-Control": "max-age=60"}) == ("old", True)

    await until(is_cached)
    assert await price(a, path) == ("old", True)
