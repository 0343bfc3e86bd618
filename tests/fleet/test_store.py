"""The store of reports, in Redis and in PostgreSQL."""

import asyncio
import secrets
from contextlib import AsyncExitStack, suppress
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio

from acgsperf.errors import FleetError
from acgsperf.fleet import store_of
from acgsperf.fleet.summary import summarize
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import RedisKeys


class PrivateDatabase:
    """A database of one test, which has no tables yet."""

    def __init__(self, dsn):
        self._dsn = dsn
        self._name = f"test_{secrets.token_hex(8)}"

    async def _execute(self, statement):
        connection = await asyncpg.connect(self._dsn)
        await connection.execute(statement)
        await connection.close()

    async def __aenter__(self):
        await self._execute(f"CREATE DATABASE {self._name}")
        return urlsplit(self._dsn)._replace(path=f"/{self._name}").geturl()

    async def __aexit__(self, *error):
        await self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")


async def tables_of(dsn):
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return [name for (name,) in rows]


async def test_a_report_is_read_back_as_it_was_published(store, report_of):
    report = report_of(
        latencies_ns=[1_000, 2_000],
        name="host:1",
        version="1.2.3",
        unhealthy=("l2",),
        alerts=("p99",),
        backplane_lag_ms=1.5,
        settings={"promotion_threshold": 3},
        revision=7,
        arm="a",
    )
    await store.publish(report)
    assert await store.reports() == [report]


async def test_the_last_report_of_an_instance_counts(store, report_of):
    for sequence in (1, 2):
        await store.publish(report_of(sequence=sequence))
    assert [report.sequence for report in await store.reports()] == [2]


async def test_all_reports_are_read_in_pages(store, open_store, report_of):
    other = await open_store()
    reports = [report_of(number) for number in range(450)]
    for at, report in enumerate(reports):
        await (store, other)[at % 2].publish(report)
    found = await store.found()
    assert sorted(report.instance for report in found.reports) == [report.instance for report in reports]
    assert len(found.ages_s) == 450
    assert (found.unreadable, found.other_format, found.from_the_future, found.more) == (0, 0, 0, False)


async def test_reports_that_are_too_large_together_are_not_all_read(store, report_of, monkeypatch):
    monkeypatch.setattr("acgsperf.fleet.store.MOST_BYTES", 500_000)
    for number in range(10):
        await store.publish(report_of(number, tuning=bytes(100_000)))
    found = await store.found()
    assert (len(found.reports), found.more) == (4, True)
    summary = await summarize(found)
    assert summary.missing == ("there are more reports than can be read: 10,000, or 128 MiB",)


async def test_a_withdrawn_report_is_gone(store, report_of):
    for number in (1, 2):
        await store.publish(report_of(number))
    await store.withdraw(report_of(1).instance)
    assert await store.reports() == [report_of(2)]


async def test_a_report_expires(store, open_store, report_of):
    brief = await open_store(lifetime=0.05)
    await store.publish(report_of(2))
    await brief.publish(report_of(1))
    async with asyncio.timeout(30):
        while len(await store.reports()) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await store.reports() == [report_of(2)]


async def test_what_has_expired_leaves_nothing_in_redis(servers, namespace, report_of):
    async with (
        redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client,
        store_of(servers.redis_url, namespace, timeout=30) as store,
        store_of(servers.redis_url, namespace, lifetime=0.05, timeout=30) as brief,
    ):
        await brief.publish(report_of(1))
        await store.publish(report_of(2))
        async with asyncio.timeout(30):
            while len(keys := [key async for key in client.scan_iter(f"{namespace}:*")]) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [0 < await client.pttl(key) <= 90_000 for key in keys] == [True, True]
        await store.publish(report_of(2))
        index = RedisKeys(namespace).fleet
        assert await client.zrange(index, 0, -1) == [report_of(2).instance.encode()]
        await store.withdraw(report_of(2).instance)
        assert [key async for key in client.scan_iter(f"{namespace}:*")] == []


async def test_what_has_expired_leaves_nothing_in_postgresql(servers, report_of):
    async with (
        PrivateDatabase(servers.database_url) as dsn,
        store_of(dsn, "one", timeout=30) as store,
        store_of(dsn, "another", lifetime=0.05, timeout=30) as brief,
    ):
        await brief.publish(report_of(1))
        connection = await asyncpg.connect(dsn)
        async with asyncio.timeout(30):
            while True:
                await store.publish(report_of(2))
                rows = await connection.fetch("SELECT namespace FROM acgsperf_fleet_v1")
                if [name for (name,) in rows] == ["one"]:
                    break
        await connection.close()


async def test_namespaces_do_not_mix(store, open_store, namespace, report_of):
    others = [await open_store(namespace=f"{namespace}{suffix}") for suffix in (":b", "%3Ab", "{b}")]
    await store.publish(report_of(1))
    assert await store.replace_state(0, b"mine")
    for other in others:
        assert await other.reports() == []
        assert await other.state() == (0, b"")
    await others[0].publish(report_of(2))
    assert await store.reports() == [report_of(1)]
    assert await others[1].reports() == []


async def test_a_document_is_replaced_only_at_the_expected_revision(store, open_store):
    other = await open_store()
    assert await store.state() == (0, b"")
    assert await store.replace_state(0, b"first")
    assert not await other.replace_state(0, b"second")
    revision, document = await other.state()
    assert document == b"first"
    assert await other.replace_state(revision, b"second")
    assert not await store.replace_state(revision, b"third")
    later, document = await store.state()
    assert later > revision
    assert document == b"second"


async def test_of_concurrent_replacements_one_succeeds(open_store):
    stores = [await open_store() for _ in range(5)]
    for _ in range(5):
        revision, _ = await stores[0].state()
        outcomes = await asyncio.gather(
            *(store.replace_state(revision, b"%d" % number) for number, store in enumerate(stores))
        )
        assert outcomes.count(True) == 1
        assert (await stores[1].state())[1] == b"%d" % outcomes.index(True)


async def test_what_is_too_large_is_refused(store, report_of):
    with pytest.raises(ValueError, match="at most 131072 bytes, got"):
        await store.publish(report_of(latency=bytes(200_000)))
    with pytest.raises(ValueError, match="at most 65536 bytes, got 65537"):
        await store.replace_state(0, bytes(65_537))


async def test_a_store_that_is_not_open_says_so(store, report_of):
    await store.close()
    await store.close()
    with pytest.raises(FleetError, match="must be opened first"):
        await store.publish(report_of())
    await store.open()
    await store.publish(report_of())
    with pytest.raises(FleetError, match="already open"):
        await store.open()


async def test_a_client_that_only_reads_creates_no_tables(servers, namespace):
    async with PrivateDatabase(servers.database_url) as dsn, store_of(dsn, namespace, timeout=30) as store:
        assert await store.reports() == []
        assert await store.state() == (0, b"")
        await store.withdraw("0123456789abcdef")
        assert await tables_of(dsn) == []
        assert await store.replace_state(0, b"x")
        assert len(await tables_of(dsn)) == 2


async def test_tables_that_were_dropped_are_created_again(servers, namespace, report_of):
    async with PrivateDatabase(servers.database_url) as dsn, store_of(dsn, namespace, timeout=30) as store:
        await store.publish(report_of())
        connection = await asyncpg.connect(dsn)
        await connection.execute("DROP TABLE acgsperf_fleet_v1, acgsperf_fleet_documents_v1")
        await connection.close()
        with pytest.raises(FleetError, match="does not exist"):
            await store.publish(report_of())
        await store.publish(report_of())
        assert await store.reports() == [report_of()]


async def test_processes_create_the_tables_together(servers, namespace, report_of):
    async with PrivateDatabase(servers.database_url) as dsn, AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(store_of(dsn, namespace, timeout=60)) for _ in range(5)]
        await asyncio.gather(*(store.publish(report_of(number)) for number, store in enumerate(stores)))
        assert len(await stores[0].reports()) == 5


async def test_a_redis_that_loses_everything_gets_reports_again(servers, namespace, report_of):
    async with (
        redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client,
        store_of(servers.redis_url, namespace, timeout=30) as store,
    ):
        await store.publish(report_of())
        assert await store.replace_state(0, b"before")
        revision, _ = await store.state()
        for key in await client.keys(f"{namespace}:*"):
            await client.delete(key)
        await client.script_flush()
        assert await store.reports() == []
        assert await store.state() == (0, b"")
        assert not await store.replace_state(revision, b"too late")
        assert await store.replace_state(0, b"after")
        # An instance that has slept meanwhile does not take it for the former document.
        assert (await store.state())[0] > revision
        await store.publish(report_of(sequence=2))
        assert [report.sequence for report in await store.reports()] == [2]


async def test_a_user_with_the_rights_to_the_namespace_may_do_everything(servers, namespace, report_of):
    async with redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client:
        rights = ["+@all", "-@admin", "-@dangerous", "+info", f"~{namespace}:*"]
        await client.execute_command("ACL", "SETUSER", namespace, "on", ">secret", "resetchannels", *rights)
        try:
            parts = urlsplit(servers.redis_url)
            url = parts._replace(netloc=f"{namespace}:secret@{parts.netloc}").geturl()
            async with store_of(url, namespace, timeout=30) as store:
                await store.publish(report_of())
                assert await store.reports() == [report_of()]
                assert await store.replace_state(0, b"x")
                assert (await store.state())[1] == b"x"
                await store.withdraw(report_of().instance)
            async with store_of(url, f"{namespace}-other", timeout=30) as store:
                with pytest.raises(FleetError, match=r"No permissions|NOPERM|can't access"):
                    await store.publish(report_of())
        finally:
            await client.execute_command("ACL", "DELUSER", namespace)


async def test_clearing_the_cache_leaves_the_reports(servers, namespace, report_of):
    tier = RedisTier(servers.redis_url, deadline=30)
    await tier.open(namespace)
    try:
        async with store_of(servers.redis_url, namespace, timeout=30) as store:
            await store.publish(report_of())
            assert await store.replace_state(0, b"x")
            assert await tier.clear() == 0
            assert await store.reports() == [report_of()]
            assert (await store.state())[1] == b"x"
    finally:
        await tier.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@localhost:1",
        "redis+cluster://:secret@localhost:1",
        "redis+sentinel://:secret@localhost:1/main",
        "postgresql://me:secret@localhost:1/nothing",
    ],
)
async def test_a_server_that_is_down_is_an_error_without_its_password(namespace, report_of, url):
    async with store_of(url, namespace, timeout=30) as store:
        for call in (store.publish(report_of()), store.reports(), store.state(), store.replace_state(0, b"")):
            with pytest.raises(FleetError, match=r"cannot use the reports at .*localhost:1") as found:
                await call
            assert "secret" not in str(found.value)


async def test_a_server_that_does_not_answer_ends_with_the_timeout(namespace):
    async def accept(reader, writer):
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    silent = await asyncio.start_server(accept, "localhost", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        for url in (f"redis://localhost:{port}", f"postgresql://localhost:{port}/nothing"):
            async with store_of(url, namespace, timeout=0.2) as store:
                with pytest.raises(FleetError, match=r"no answer within 0.2 s"):
                    await store.reports()


@pytest.mark.parametrize("url", ["", "http://localhost", "localhost:6379", "redis://localhost:0", "postgresql://a:b:c"])
def test_an_unusable_url_is_refused_without_being_repeated(url):
    with pytest.raises(ValueError, match=r"URL|DSN"):
        store_of(url, "n")
