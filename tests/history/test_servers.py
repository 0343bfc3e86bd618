"""The Redis of a run dies and comes back as a mode wants it, and proxies cut connections inside a reply."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
import redis

from .servers import Proxy, RedisServer, proxied_dsn


def stored(server):
    with server.client() as client:
        return client.get("k")


def store(server, value):
    with server.client() as client:
        client.set("k", value)


def test_a_killed_redis_starts_empty(executable):
    with RedisServer(executable) as server:
        store(server, "v")
        server.kill()
        with server.client() as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert stored(server) is None


def test_a_killed_redis_starts_from_its_snapshot(executable):
    with RedisServer(executable) as server:
        store(server, "old")
        server.save()
        store(server, "new")
        server.kill()
        server.start()
        assert stored(server) == b"old"


def test_a_redis_ends_with_its_context(executable):
    with RedisServer(executable) as server:
        folder = Path(server.socket).parent
    assert not folder.exists()
    with server.client() as client, pytest.raises(redis.ConnectionError):
        client.ping()


async def test_a_proxy_forwards_until_it_cuts_inside_a_reply(executable):
    with RedisServer(executable) as server:
        path = server.socket.with_name("proxy.sock")
        async with Proxy(server.socket, path) as proxy:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"PING\r\n")
            assert await reader.readline() == b"+PONG\r\n"
            proxy.cut()
            writer.write(b"PING\r\n")
            assert await reader.read() == b"+PO"
            writer.close()
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"PING\r\n")
            assert await reader.readline() == b"+PONG\r\n"
            writer.close()


async def test_a_postgres_is_reached_through_a_proxy(victim, executable):
    with RedisServer(executable) as server:
        # Its folder has a short path.
        dsn, target, path = proxied_dsn(victim.dsn, server.socket.parent)
        async with Proxy(target, path):
            connection = await asyncpg.connect(dsn)
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
