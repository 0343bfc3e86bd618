"""Replies of a server that come in unusual pieces."""

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
