"""PostgresBackplane: records arrive in whatever order transactions commit, and gaps are noticed."""

import asyncio
import json
import logging
import os
import re
import secrets
import signal
import struct
import sys
import textwrap
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from acgsperf.backplane import BackplaneState, beside
from acgsperf.backplane import postgres as backplane_postgres
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.errors import TierError
from acgsperf.tiers import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.postgres_schema import channel_of
from acgsperf.tiers.records import Record, RecordKind, packed


def data(*names, sent_us=0):
    return packed(Record(RecordKind.KEYS, tuple((name.encode(), b"") for name in names)), b"somebody", sent_us)


async def log(connection, table, namespace, *names):
    await connection.execute(f"INSERT INTO {table}_v2_log (namespace, record) VALUES ($1, $2)", namespace, data(*names))
    await connection.execute("SELECT pg_notify($1, '')", channel_of(table, namespace))


async def test_a_record_arrives_at_others_and_not_at_its_writer(postgres, opened, namespace, keys, until):
    one, other, stranger = postgres(), postgres(), postgres()
    mine, theirs = await opened(one, namespace), await opened(other, namespace)
    strangers = await opened(stranger, namespace + "x")
    assert theirs.misses == mine.misses == strangers.misses == 1
    began = time.monotonic()
    assert await one.publish(keys("a", "b"))
    await until(lambda: theirs.records and one.stats().sent)
    # By the notification, not by the regular reading.
    assert time.monotonic() - began < 0.2
    assert (theirs.keys, mine.records, strangers.records) == (["a", "b"], [], [])
    assert one.position == other.position != b""
    stats = other.stats()
    assert (stats.state, stats.received, stats.applied, stats.malformed) == (BackplaneState.FOLLOWING, 1, 1, 0)
    assert stats.lag.count == 1
    assert len(backplane_postgres._readers) == 1


async def test_a_transaction_that_commits_late_is_not_missed(
    postgres, opened, connection, dsn, table, namespace, until
):
    backplane = postgres()
    listener = await opened(backplane, namespace)
    early = await asyncpg.connect(dsn)
    async with early.transaction():
        await log(early, table, namespace, "early number, late commit")
        for number in range(5):
            await log(connection, table, namespace, str(number))
        await until(lambda: len(listener.records) == 5)
        # Several readings, which see the same rows.
        leased = listener.until
        await until(lambda: listener.until > leased + 0.5)
        assert len(listener.records) == 5
    await until(lambda: len(listener.records) == 6)
    assert listener.keys[-1] == "early number, late commit"
    await early.close()
    await asyncio.sleep(0)
    assert listener.misses == 1


async def test_a_transaction_that_is_rolled_back_says_nothing(postgres, opened, connection, table, namespace, until):
    listener = await opened(postgres(), namespace)
    with suppress(ZeroDivisionError):
        async with connection.transaction():
            await log(connection, table, namespace, "never")
            raise ZeroDivisionError
    await log(connection, table, namespace, "after")
    await until(lambda: listener.records)
    assert listener.keys == ["after"]


async def test_the_lease_is_extended_without_records(postgres, opened, namespace, until):
    began = time.monotonic()
    listener = await opened(postgres(timeout=0.2), namespace)
    # A cache waits for the log for a limited time only.
    await until(lambda: listener.until)
    assert began < listener.until <= time.monotonic() + 0.2
    first = listener.until
    await until(lambda: listener.until > first + 0.5)
    assert listener.misses == 1


async def test_records_without_a_notification_are_read_within_the_timeout(
    postgres, opened, connection, table, namespace, until
):
    listener = await opened(postgres(timeout=0.4), namespace)
    await connection.execute(f"INSERT INTO {table}_v2_log (namespace, record) VALUES ($1, $2)", namespace, data("a"))
    await until(lambda: listener.keys == ["a"], 2)


async def test_a_truncated_log_is_a_gap(postgres, opened, connection, table, namespace, until):
    backplane = postgres(timeout=0.4)
    listener = await opened(backplane, namespace)
    await connection.execute(f"TRUNCATE {table}_v2_log")
    await until(lambda: listener.misses == 2)
    assert backplane.stats().gaps == 1
    await log(connection, table, namespace, "after")
    await until(lambda: listener.keys == ["after"])


async def test_a_dropped_log_is_a_gap_and_is_created_again(postgres, opened, connection, table, namespace, until):
    backplane = postgres(timeout=0.4)
    listener = await opened(backplane, namespace)
    await connection.execute(f"DROP TABLE {table}_v2_log")
    await until(lambda: listener.misses == 2)
    await log(connection, table, namespace, "after")
    await until(lambda: listener.keys == ["after"])


async def test_a_process_that_has_not_read_for_longer_than_records_are_kept_has_a_gap(
    postgres, opened, namespace, until
):
    backplane = postgres(timeout=0.4)
    listener = await opened(backplane, namespace)
    next(iter(backplane._reader.logs.values())).read_at -= 61
    await until(lambda: listener.misses == 2)
    await until(lambda: backplane.stats().state is BackplaneState.FOLLOWING)


async def test_old_records_are_removed_by_the_age_of_their_commit(
    postgres, opened, connection, table, namespace, until
):
    backplane = postgres(timeout=0.4)
    await opened(backplane, namespace)
    (mine,) = backplane._reader.logs.values()
    await log(connection, table, namespace, "old")
    await until(lambda: backplane.stats().received)
    snapshot = await connection.fetchval("SELECT pg_current_snapshot()::text")
    await log(connection, table, namespace, "young")
    await connection.execute(f"UPDATE {table}_v2_log SET logged_at = 0")
    mine.old, mine.swept_at = (snapshot, 1.0), 0.0
    async with asyncio.timeout(5):
        while len(left := await connection.fetch(f"SELECT record FROM {table}_v2_log")) != 1:
            pass
    assert left[0]["record"] == data("young")


@pytest.mark.parametrize("record", [b"", b"\xc1", data("a").replace(b"\x01", b"\x02", 1)])
async def test_what_does_not_parse_is_counted_and_skipped(
    postgres, opened, connection, table, namespace, until, record
):
    backplane = postgres()
    listener = await opened(backplane, namespace)
    await connection.execute(f"INSERT INTO {table}_v2_log (namespace, record) VALUES ($1, $2)", namespace, record)
    await log(connection, table, namespace, "after")
    await until(lambda: listener.records)
    assert (backplane.stats().malformed, listener.keys, listener.misses) == (1, ["after"], 1)


async def test_what_was_missed_is_read_after_a_lost_connection(postgres, opened, connection, table, namespace, until):
    backplane = postgres()
    listener = await opened(backplane, namespace)
    pid = backplane._reader._connection.get_server_pid()
    async with connection.transaction():
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await log(connection, table, namespace, "a")
    await until(lambda: listener.records)
    assert listener.misses == 1
    assert (backplane.stats().recovered, backplane.stats().gaps) == (1, 0)
    await log(connection, table, namespace, "b")
    await until(lambda: listener.keys == ["a", "b"])
    assert backplane.stats().recovered == 1


async def test_a_server_that_crashes_is_a_gap(opened, victim, keys, until, caplog):
    """It uses numbers of transactions again that the last snapshot contains."""
    backplane, writer = PostgresBackplane(victim.dsn, timeout=0.4), PostgresBackplane(victim.dsn, timeout=0.4)
    listener = await opened(backplane, "ns")
    await opened(writer, "ns")
    victim.kill()
    await until(lambda: not listener.leased)
    assert backplane.stats().state is BackplaneState.RECOVERING
    assert not await writer.publish(keys("a"))
    victim.start()
    await until(lambda: listener.leased and listener.records)
    assert (listener.keys, listener.misses, backplane.stats().gaps) == (["a"], 2, 1)
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


async def test_a_server_that_recovers_after_a_killed_session_is_a_gap(opened, victim, until):
    """Its main process goes on."""
    backplane = PostgresBackplane(victim.dsn, timeout=0.4)
    listener = await opened(backplane, "ns")
    connection = await asyncpg.connect(victim.dsn)
    started = await connection.fetchval("SELECT pg_postmaster_start_time()")
    os.kill(connection.get_server_pid(), signal.SIGKILL)
    await until(lambda: listener.leased and backplane.stats().gaps == 1)
    connection.terminate()
    connection = await asyncpg.connect(victim.dsn)
    assert await connection.fetchval("SELECT pg_postmaster_start_time()") == started
    await connection.close()


async def test_a_frozen_server_ends_the_lease_in_time(opened, victim, until):
    listener = await opened(PostgresBackplane(victim.dsn, timeout=0.4), "ns")
    frozen_at = time.monotonic()
    victim.freeze()
    await until(lambda: not listener.leased)
    assert listener.until <= frozen_at + 0.4 + 0.1
    victim.thaw()
    await until(lambda: listener.leased)
    assert listener.misses == 1


async def test_a_server_that_is_not_there_is_one_warning(opened, keys, caplog):
    backplane = PostgresBackplane("postgresql://localhost:1/nothing", timeout=0.2)
    listener = await opened(backplane, "ns")
    await opened(PostgresBackplane("postgresql://localhost:1/nothing", timeout=0.2), "other")
    assert (listener.until, listener.misses, backplane.position) == (0, 0, b"")
    assert backplane.stats().state is BackplaneState.CONNECTING
    assert not await backplane.publish(keys("a"))
    assert backplane.stats().queued == 1
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


async def test_missing_rights_are_named_once_and_the_cache_joins_later(
    opened, connection, dsn, table, namespace, until, caplog
):
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM public")
    try:
        backplane = PostgresBackplane(dsn.replace("postgres:@", f"{role}:@"), table=table, timeout=0.4)
        listener = await opened(backplane, namespace)
        assert backplane.stats().state is BackplaneState.OFF
        tier = PostgresTier(dsn, table=table)
        await tier.open(namespace)
        await tier.close()
        await connection.execute(f"GRANT SELECT, INSERT, DELETE ON {table}_v2_log TO {role}")
        await until(lambda: listener.leased)
        # On a busy machine, the tier may warn as well.
        warnings = [it for it in caplog.records if it.levelno == logging.WARNING and it.name == "acgsperf.backplane"]
        assert len(warnings) == 1
        await backplane.close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


class Pooler:
    """Stands between a client and PostgreSQL, and gives the client another session number, as every pooler does."""

    def __init__(self, target):
        self._target = target

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error):
        self._server.close()

    async def _serve(self, reader, writer):
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)

        async def back():
            with suppress(OSError):
                while data := await inner_reader.read(65_536):
                    writer.write(
                        re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c" + struct.pack("!I", 1), data, flags=re.DOTALL)
                    )
            writer.close()

        task = asyncio.create_task(back())
        with suppress(OSError):
            while data := await reader.read(65_536):
                inner_writer.write(data)
        inner_writer.close()
        await task


async def test_behind_a_pooler_it_stays_off(opened, dsn, table, keys, caplog):
    folder = parse_qs(urlsplit(dsn).query)["host"][0]
    async with Pooler(f"{folder}/.s.PGSQL.5432") as pooler:
        address = f"postgresql://postgres:@127.0.0.1:{pooler.port}/postgres?sslmode=disable"
        backplanes = [PostgresBackplane(address, table=table) for _ in range(2)]
        listeners = [await opened(backplane, "ns") for backplane in backplanes]
        assert [it.stats().state for it in backplanes] == [BackplaneState.OFF] * 2
        assert [it.until for it in listeners] == [0, 0]
        assert not await backplanes[0].publish(keys("a"))
        (warning,) = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
        assert "pooler" in warning
        for backplane in backplanes:
            await backplane.close()


async def test_the_last_cache_closes_the_connection(postgres, connection, recorder, namespace, table):
    backplanes = [postgres(), postgres()]
    for number, backplane in enumerate(backplanes):
        await backplane.open(f"{namespace}{number}", recorder(), b"12345678")
    pid = backplanes[0]._reader._connection.get_server_pid()
    for backplane in backplanes:
        await backplane.close()
        await backplane.close()
        assert backplane.stats().state is BackplaneState.OFF
    async with asyncio.timeout(5):
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
            pass
    assert backplane_postgres._readers == {}


async def test_use_that_is_not_allowed(postgres, recorder, namespace, keys, dsn):
    backplane = postgres()
    with pytest.raises(TierError, match="is not open"):
        backplane.publish(keys("a"))
    with pytest.raises(ValueError, match="table must be"):
        PostgresBackplane(dsn, table="Bad Name")
    await backplane.open(namespace, recorder(), b"12345678")
    with pytest.raises(TierError, match="already open"):
        await backplane.open(namespace, recorder(), b"12345678")
    await backplane.close()


async def test_the_records_of_a_tier_arrive(dsn, table, opened, namespace, until):
    tier = PostgresTier(dsn, table=table, deadline=5)
    tier.writer = b"a writer"
    backplane, other = beside(tier), PostgresBackplane(dsn, table=table)
    await tier.open(namespace)
    await opened(backplane, namespace, tier.writer)
    listener = await opened(other, namespace)
    now = time.monotonic()
    assert await tier.set("a", Entry("v", now, now + 10, now + 10, ("t",)))
    assert await tier.invalidate_tag("t") is not None
    await until(lambda: len(listener.records) == 2 and backplane.stats().sent == 2)
    assert [it.kind for it in listener.records] == [RecordKind.KEYS, RecordKind.TAG]
    assert backplane.stats().applied == 0
    await tier.close()


WORKER = textwrap.dedent("""
    import asyncio, json, sys, time
    from acgsperf.backplane.postgres import PostgresBackplane
    from acgsperf.tiers.records import texts

    class Listener:
        def apply(self, record):
            print(json.dumps([[key for key, _ in texts(record.items)], time.monotonic()]), flush=True)
        def extend(self, until):
            pass
        def missed(self):
            pass

    async def main(dsn, table, namespace):
        backplane = PostgresBackplane(dsn, table=table)
        await backplane.open(namespace, Listener(), b"a worker")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await backplane.close()

    asyncio.run(main(*sys.argv[1:]))
""")


async def test_a_record_arrives_in_another_process_within_milliseconds(postgres, opened, namespace, keys, dsn, table):
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, dsn, table, namespace), stdin=pipe, stdout=pipe
    )
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"ready\n"
        backplane = postgres()
        await opened(backplane, namespace)
        lags = []
        for number in range(30):
            began = time.monotonic()
            assert await backplane.publish(keys(str(number)))
            names, at = json.loads(await process.stdout.readline())
            assert names == [str(number)]
            lags.append(at - began)
        process.stdin.close()
        await process.wait()
    # The machine may be busy.
    assert min(lags) < 0.05
