"""Replies of a server that come in unusual pieces."""

import logging
from contextlib import suppress

import asyncpg
import pytest

from acgsperf import ConnectionPool


async def last_byte_apart(data, write):
    await write(data[:-1])
    await write(data[-1:])


async def end_in_two_pieces(data, write):
    await write(data[:-3])
    await write(data[-3:])


async def byte_by_byte(data, write):
    for position in range(len(data)):
        await write(data[position : position + 1])


async def twice(data, write):
    await write(data + data if b"twice" in data else data)


@pytest.mark.parametrize("relay", [last_byte_apart, end_in_two_pieces, byte_by_byte])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("check_after", [0.0, 1e9])
async def test_a_connection_stays_usable_however_its_replies_are_split(proxy, relay, reset, check_after):
    proxy.relay = relay
    options = {"min_size": 1, "max_size": 1, "reset": reset, "check_after": check_after}
    async with ConnectionPool(proxy.dsn, **options) as pool:
        for number in range(3):
            async with pool.acquire(timeout=5) as connection:
                assert await connection.fetchval("SELECT $1::int", number) == number
        assert (await pool.health()).healthy
        assert pool.stats().opened == 1


async def test_a_second_reply_closes_its_connection_and_is_logged_once(proxy, caplog):
    caplog.set_level(logging.WARNING)
    proxy.relay = twice
    options = {"min_size": 1, "max_size": 1, "reset": False}
    async with ConnectionPool(proxy.dsn, name="orders", **options) as pool:
        async with pool.acquire(timeout=5) as connection:
            with suppress(asyncpg.InterfaceError, asyncpg.PostgresError):
                await connection.execute("SELECT 'twice'")
        async with pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("SELECT 2") == 2
        assert pool.stats().opened == 2
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1, messages
    assert messages[0].startswith("pool 'orders': unexpected data from the server (")
