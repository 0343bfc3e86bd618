"""Replies that answer nothing, or whose headers are damaged: asyncpg must not read them."""

import asyncio
import gc
import logging
import re
import sys
import time
from contextlib import suppress

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolError
from acgsperf.pool.wire import wire_of

ONE = {"min_size": 1, "max_size": 1, "connect_timeout": 1.0, "check_timeout": 1.0}
ERRORS = (PoolError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)


@pytest.fixture(autouse=True)
def unraisable():
    """What the interpreter reports as unraisable."""
    found = []
    former, sys.unraisablehook = sys.unraisablehook, found.append
    yield found
    gc.collect()
    sys.unraisablehook = former
    assert not found, [str(one) for one in found]


@pytest.fixture
async def loop_reports():
    found = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    assert not found


class Changes:
    """Changes the next reply of a proxy when a test says so.

    Attributes:
        made: how many replies it has changed.
    """

    def __init__(self, proxy):
        self.made = 0
        self._next = None
        proxy.relay = self._relay

    def once(self, change):
        self._next = change

    async def _relay(self, data, write):
        change, self._next = self._next, None
        self.made += change is not None
        await write(change(data) if change else data)


@pytest.fixture
def changes(proxy):
    return Changes(proxy)


async def works(pool):
    assert await pool.fetchval("SELECT $1::int", 7) == 7


async def test_a_doubled_greeting_ends_the_attempt_and_is_no_error_of_the_loop(proxy, loop_reports):
    async def twice(data, write):
        await write(data * 2)

    proxy.relay = twice
    # The server's answer to the request for TLS has no header.
    pool = ConnectionPool(proxy.dsn + "?sslmode=disable", **ONE)
    with pytest.raises(PoolError, match="ConnectionDoesNotExistError"):
        await pool.open()
    proxy.reset()
    async with pool:
        await works(pool)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_doubled_reply_is_never_taken_for_the_next_one(proxy, changes, loop_reports, reset):
    async with ConnectionPool(proxy.dsn, reset=reset, **ONE) as pool:
        for number in range(30):
            changes.once(lambda data: data * 2)
            with suppress(*ERRORS):
                assert await pool.fetchval("SELECT $1::int", number) == number
        assert changes.made == 30
        assert pool.stats().opened > 1


def sign(data, at):
    """Make the length of a message negative."""
    return data[: at + 1] + bytes([data[at + 1] | 0x80]) + data[at + 2 :]


def headers(data):
    """Return where the messages of a reply begin."""
    at, found = 0, []
    while at + 5 <= len(data):
        found.append(at)
        at += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
    return found


async def test_a_negative_length_ends_the_connection_and_not_the_process(proxy, changes, loop_reports, caplog):
    caplog.set_level(logging.WARNING)
    async with ConnectionPool(proxy.dsn, **ONE) as pool:
        for which in range(4):
            await works(pool)
            changes.once(lambda data, which=which: sign(data, headers(data)[which % len(headers(data))]))
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                async with pool.acquire() as connection:
                    await connection.fetch("SELECT $1::int, $2::text", 7, "seven")
        await works(pool)
    assert sum("a length of -" in record.getMessage() for record in caplog.records) == 4


async def test_any_flipped_bit_of_a_header_ends_in_an_error_or_a_right_answer(proxy, changes, loop_reports):
    """Each bit of the headers of the replies to a query, one at a time, without a `command_timeout`."""
    flipped = set()
    bits = 4 * 5 * 8

    def flip(data, bit):
        where = [at + offset for at in headers(data) for offset in range(5)]
        at = where[bit // 8 % len(where)]
        flipped.add((bit // 8 % len(where), bit % 8))
        return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]

    async with ConnectionPool(proxy.dsn, **ONE, reset=False, reset_timeout=0.05) as pool:
        for bit in range(bits):
            async with asyncio.timeout(10):
                while True:
                    with suppress(*ERRORS):
                        await works(pool)
                        break
                    await asyncio.sleep(0.01)
            made = changes.made
            changes.once(lambda data, bit=bit: flip(data, bit))
            while changes.made == made:
                with suppress(*ERRORS):
                    async with asyncio.timeout(0.05), pool.acquire() as connection:
                        assert await connection.fetchval("SELECT $1::int", bit) == bit
    # The reply to the query has four messages.
    assert len(flipped) == bits


async def test_a_version_that_is_no_number_ends_the_attempt(proxy):
    async def relay(data, write):
        await write(re.sub(rb"(?<=server_version\0)[\d.]+", lambda found: b"x" * len(found[0]), data))

    proxy.relay = relay
    with pytest.raises(PoolError, match="Unable to parse Postgres version"):
        await ConnectionPool(proxy.dsn, **ONE).open()


async def test_a_transaction_that_is_cancelled_does_not_wait_for_a_silent_server(proxy, hole):
    async with ConnectionPool(proxy.dsn, **ONE, reset_timeout=0.2) as pool:

        async def query():
            async with asyncio.timeout(0.1), pool.acquire() as connection, connection.transaction():
                hole.open()
                await connection.fetchval("SELECT 1")

        began = time.monotonic()
        with pytest.raises((TimeoutError, asyncpg.InterfaceError)):
            await query()
        assert time.monotonic() - began < 2
        hole.close()
        async with asyncio.timeout(10):
            while not pool.healthy:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await works(pool)


async def test_a_cancellation_that_the_server_confirms_keeps_the_connection(dsn):
    async with ConnectionPool(dsn, **ONE, reset_timeout=5) as pool:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), pool.acquire() as connection, connection.transaction():
                    await connection.fetchval("SELECT pg_sleep(30)")
        await works(pool)
        assert pool.stats().opened == 1


async def test_each_kind_of_address_has_a_wire(dsn, proxy):
    # The proxy's server has no TLS, which the default, `prefer`, asks for.
    for address in (dsn, proxy.dsn, proxy.dsn + "?sslmode=disable"):
        async with ConnectionPool(address, **ONE) as pool, pool.acquire() as connection:
            wire = wire_of(connection._con)
            assert connection._con._transport._transport.get_protocol() is wire
            # With a reply that nobody has asked for, the connection ends.
            wire.data_received(b"1\0\0\0\4")
            assert wire.hung_up
            with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
                await connection.fetchval("SELECT 1")


async def test_a_server_of_another_kind_is_no_warning_for_each_attempt(caplog):
    caplog.set_level(logging.DEBUG)

    async def refuse(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PoolError):
            await ConnectionPool(f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable", **ONE).open()
    found = [record.levelname for record in caplog.records if "unexpected data" in record.getMessage()]
    assert set(found) == {"DEBUG"}


async def test_the_error_of_a_borrower_says_what_came(proxy, changes):
    async with ConnectionPool(proxy.dsn, **ONE) as pool:
        async with pool.acquire() as connection:
            changes.once(lambda data: b"3\0\0\0\4" + data)
            with pytest.raises(asyncpg.ConnectionDoesNotExistError) as raised:
                await connection.fetchval("SELECT $1::int", 7)
        assert "unexpected data from the server ('3' where '1' was due)" in str(raised.value.__cause__)
