"""Fixtures: a cache and a pool under their former names, and a process that uses the former modules."""

import json
import secrets

import pytest
import redis as plain_redis

from acgsperf.compat.ultra_fast_cache import UltraFastMultiTierCache
from acgsperf.compat.ultra_fast_connection_pool import UltraFastConnectionPool


class OldProcess:
    """Reads and writes with redis-py like the former cache: bare keys, JSON texts, SETEX and SET."""

    def __init__(self, url):
        self.client = plain_redis.Redis.from_url(url, decode_responses=True)

    def write(self, key, value, ttl=None):
        text = json.dumps(value)
        if ttl is None:
            self.client.set(key, text)
        else:
            self.client.execute_command("SETEX", key, ttl, text)

    def read(self, key):
        text = self.client.get(key)
        return None if text is None else json.loads(text)

    def ttl(self, key):
        return self.client.ttl(key)

    def delete(self, key):
        self.client.delete(key)


@pytest.fixture
def old(servers):
    process = OldProcess(servers.redis_url)
    yield process
    process.client.close()


@pytest.fixture
def key(old):
    """A key prefix that no other test uses."""
    name = f"compat-{secrets.token_hex(6)}"
    yield name
    for found in old.client.scan_iter(f"{name}*"):
        old.client.delete(found)


@pytest.fixture
async def cache(servers):
    cache = UltraFastMultiTierCache(servers.redis_url, l1_max_size=100)
    await cache.initialize()
    yield cache
    await cache.close()


@pytest.fixture
def dsn(servers):
    return servers.database_url


@pytest.fixture
async def pool(dsn):
    pool = UltraFastConnectionPool("orders", dsn, min_size=2, max_size=3)
    await pool.initialize()
    yield pool
    await pool.close()
