"""No log, repr, error or traceback contains a password, whatever the servers do."""

import asyncio
import gc
import logging
import traceback
from urllib.parse import quote

import pytest

from acgsperf import ConnectionPool, LRUCache, PoolError, TieredCache
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

SECRET = "S3cret/p@ss%word"
# As it is in a URL, and without what must be quoted there.
SHAPES = (SECRET, quote(SECRET, safe=""), "S3cret")


def _is_revealed(text):
    return any(shape in text for shape in SHAPES)


async def _hang_up(reader, writer):
    writer.close()


async def _be_silent(reader, writer):
    while await reader.read(1_000):
        pass
    writer.close()


async def _talk_nonsense(reader, writer):
    """Repeat what the client says, as an error message may do, without end."""
    while data := await reader.read(1_000):
        writer.write(b"-ERR " + data.replace(b"\r\n", b" ") + b"\r\n")
    writer.close()


async def _nobody(reader, writer):
    raise AssertionError


@pytest.mark.parametrize("server", [_hang_up, _be_silent, _talk_nonsense, _nobody])
async def test_a_password_is_revealed_nowhere(server, caplog):
    caplog.set_level(logging.DEBUG)
    seen = []
    # On a busy machine the others need time to answer.
    deadline = 0.1 if server is _be_silent else 5
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    if server is _nobody:
        listening.close()
        await listening.wait_closed()
    secret = quote(SECRET, safe="")
    redis_url, dsn = f"redis://app:{secret}@127.0.0.1:{port}/0", f"postgresql://app:{secret}@127.0.0.1:{port}/db"
    pool = ConnectionPool(dsn, min_size=0, max_size=2, connect_timeout=0.3)
    l2, l3 = RedisTier(redis_url, deadline=deadline), PostgresTier(dsn, deadline=deadline)
    asking = RedisTier(f"redis://127.0.0.1:{port}", deadline=deadline, credentials=lambda: ("app", SECRET))
    backplanes = RedisBackplane(redis_url), PostgresBackplane(dsn)
    cache = TieredCache(LRUCache(10), l2, l3, namespace="secrets")
    seen += map(repr, (pool, l2, l3, cache, *backplanes))
    await pool.open()
    try:
        async with pool.acquire(timeout=0.5):
            pass
    except PoolError as error:
        seen += ["".join(traceback.format_exception(error)), repr(error), str(error), repr(error.__cause__)]
    finally:
        seen += [repr(await pool.health()), repr(pool), repr(pool.stats())]
        await pool.close()
    async with cache:
        for _ in range(4):
            seen.append(repr(await cache.set("key", "value")))
            await cache.get("key")
        seen += map(repr, (cache, cache.stats(), await cache.health(), l2, l3, cache.stats().backplane))
    await asking.open("secrets")
    seen += map(repr, (asking, await asking.health(), asking.stats()))
    await asking.close()
    for backplane in backplanes:
        async with TieredCache(LRUCache(10), namespace="secrets", backplane=backplane) as alone:
            seen += map(repr, (alone, await alone.delete("key"), alone.stats(), backplane))
    listening.close()
    gc.collect()
    handler = logging.Formatter()
    seen += [handler.format(record) for record in caplog.records]
    assert [text for text in seen if _is_revealed(text)] == []
    assert any("127.0.0.1" in text for text in seen)
