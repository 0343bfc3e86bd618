"""Several servers in one DSN, of which the pool uses one."""

import asyncio
import time
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolUnhealthy


@pytest.fixture
async def proxies(make_proxy):
    return [await make_proxy() for _ in range(3)]


def dsn_of(proxies, query=""):
    parts = urlsplit(proxies[0].dsn)
    user = parts.netloc.rpartition("@")[0]
    return f"postgresql://{user}@{','.join(proxy.address for proxy in proxies)}{parts.path}{query}"


@pytest.mark.parametrize("fault", ["silent", "refusing"])
@pytest.mark.parametrize("well", [0, 1, 2])
async def test_a_server_is_found_though_others_fail(proxies, fault, well):
    for number, proxy in enumerate(proxies):
        setattr(proxy, fault, number != well)
    start = time.monotonic()
    async with ConnectionPool(dsn_of(proxies), min_size=2, max_size=2, connect_timeout=1.5) as pool:
        assert time.monotonic() - start < 2.5
        assert pool.stats().failed_connects == 0
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_the_last_good_server_comes_first(proxies, until):
    one, two, _ = proxies
    one.silent = True
    async with ConnectionPool(dsn_of(proxies), min_size=1, max_size=4, connect_timeout=0.9) as pool:
        tried = one.accepted
        one.reset()
        await pool.warm(4)
        assert (one.accepted, two.accepted) == (tried, 4)
        # When it fails, the next one is tried, and serves from then on.
        two.silent = True
        two.hang_up()
        await until(lambda: pool.stats().opened > 4)
        tried = two.accepted
        pool.drain()
        await pool.warm(4)
        assert two.accepted == tried


async def test_an_attempt_over_all_servers_ends_after_connect_timeout(proxies):
    for proxy in proxies:
        proxy.silent = True
    pool = ConnectionPool(dsn_of(proxies), min_size=1, max_size=1, connect_timeout=0.3)
    start = time.monotonic()
    with pytest.raises(PoolUnhealthy, match="TimeoutError"):
        await pool.open()
    # Three attempts, with a backoff between them.
    assert time.monotonic() - start < 3 * 0.3 + 1
    assert all(proxy.accepted >= 3 for proxy in proxies)


async def test_an_error_that_all_servers_would_give_is_not_repeated(proxies):
    pool = ConnectionPool(dsn_of(proxies), min_size=1, max_size=1, database="no_such_database")
    with pytest.raises(PoolUnhealthy, match="InvalidCatalogNameError"):
        await pool.open()
    assert sum(proxy.accepted > 0 for proxy in proxies) == 1


async def test_servers_are_balanced_at_random_if_the_dsn_asks_for_it(proxies):
    async with ConnectionPool(dsn_of(proxies, "?load_balance_hosts=random"), min_size=30, max_size=30):
        assert all(proxy.accepted >= 1 for proxy in proxies)


async def test_a_server_of_the_wanted_kind_is_used(victim, dsn, admin):
    folders = [parse_qs(urlsplit(address).query).get("host", [None])[0] for address in (victim.dsn, dsn)]
    if None in folders:
        pytest.skip("the server of the tests has no socket in the file system")
    other = await asyncpg.connect(victim.dsn)
    try:
        await other.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await other.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(5):
            while await other.fetchval("SHOW default_transaction_read_only") != "on":
                pass
        both = f"postgresql://postgres:@/postgres?host={','.join(folders)}"
        for kind, folder in (
            ("read-write", folders[1]),
            ("read-only", folders[0]),
            ("any", folders[0]),
            ("primary", folders[0]),
            ("prefer-standby", folders[0]),
        ):
            async with ConnectionPool(f"{both}&target_session_attrs={kind}", min_size=1, max_size=1) as pool:
                folder_used = await pool.fetchval("SHOW unix_socket_directories")
                assert (kind, folder_used) == (kind, folder)
        pool = ConnectionPool(both, min_size=1, max_size=1, target_session_attrs="standby")
        with pytest.raises(PoolUnhealthy, match="TargetServerAttributeNotMatched"):
            await pool.open()
    finally:
        await other.close()


def alone(proxies):
    """The DSN without its hosts."""
    parts = urlsplit(proxies[0].dsn)
    return f"postgresql://{parts.netloc.rpartition('@')[0]}@{parts.path}"


@pytest.fixture(params=["PGHOST", "PGHOST and PGPORT", "host=[...]", "host=[...] and PGPORT", "port=[...]"])
def given(request, proxies, monkeypatch):
    """Make a pool whose hosts are given in another way than in its DSN."""
    hosts = ["127.0.0.1"] * 3
    ports = [int(proxy.address.rpartition(":")[2]) for proxy in proxies]

    def make(query="", **options):
        dsn = f"{alone(proxies)}{query}"
        environment = {}
        match request.param:
            case "PGHOST":
                environment["PGHOST"] = ",".join(proxy.address for proxy in proxies)
            case "PGHOST and PGPORT":
                environment["PGHOST"] = ",".join(hosts)
                environment["PGPORT"] = ",".join(map(str, ports))
            case "host=[...]":
                options |= {"host": hosts, "port": ports}
            case "host=[...] and PGPORT":
                options["host"] = hosts
                environment["PGPORT"] = ",".join(map(str, ports))
            case "port=[...]":
                dsn = dsn.replace("@", "@127.0.0.1:1,127.0.0.1:1,127.0.0.1:1")
                options["port"] = ports
        for name in ("PGHOST", "PGPORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return ConnectionPool(dsn, **options)

    return make


@pytest.mark.parametrize("fault", ["silent", "refusing"])
async def test_hosts_that_are_not_in_the_dsn_have_their_shares_too(proxies, given, fault):
    for proxy in proxies[:2]:
        setattr(proxy, fault, True)
    async with given(min_size=2, max_size=2, connect_timeout=1.0) as pool:
        assert pool.stats().failed_connects == 0
        assert await pool.fetchval("SELECT 1") == 1
        # The last good one comes first.
        tried = proxies[2].accepted
        pool.drain()
        await pool.warm(2)
        assert (proxies[0].accepted, proxies[2].accepted) == (proxies[1].accepted, tried + 2)


async def test_hosts_that_are_not_in_the_dsn_are_named_in_errors(proxies, given):
    for proxy in proxies:
        proxy.refusing = True
    pool = given(min_size=1, max_size=1, connect_timeout=1.0)
    with pytest.raises(PoolUnhealthy) as caught:
        await pool.open()
    assert f"cannot reach {', '.join(proxy.address for proxy in proxies)}: " in str(caught.value)


async def test_hosts_that_are_not_in_the_dsn_are_balanced_too(proxies, given):
    async with given("?load_balance_hosts=random", min_size=30, max_size=30):
        assert all(proxy.accepted >= 1 for proxy in proxies)


@pytest.mark.parametrize(
    ("environment", "options"),
    [({"PGHOST": "one,two,three", "PGPORT": "1,2"}, {}), ({}, {"host": ["one", "two", "three"], "port": [1, 2]})],
)
def test_hosts_that_are_not_in_the_dsn_have_one_port_or_one_for_each(monkeypatch, environment, options):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="must have one port, or one for each host, got 3 hosts, 2 ports"):
        ConnectionPool("postgresql:///db", **options)


def test_a_port_that_is_no_number_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="dsn must be a postgresql:// URL with ports from 1 to 65535"):
        ConnectionPool("postgresql:///db?host=one&port=secret")
    for host in ("one:secret", "::1"):
        with pytest.raises(ValueError, match=r"dsn must have \[\] around IPv6 addresses, and integers as its ports"):
            ConnectionPool(f"postgresql:///db?host={host}")
    monkeypatch.setenv("PGPORT", "secret")
    with pytest.raises(ValueError, match="PGPORT must have integers as its ports"):
        ConnectionPool("postgresql://one,two/db")


async def test_the_environment_may_ask_for_a_kind_of_server(proxies, monkeypatch):
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    pool = ConnectionPool(dsn_of(proxies), min_size=1, max_size=1)
    with pytest.raises(PoolUnhealthy, match="TargetServerAttributeNotMatched"):
        await pool.open()


async def test_the_kind_of_server_may_be_given_as_asyncpg_documents_it(proxies):
    wanted = asyncpg.connect_utils.SessionAttribute.read_write
    async with ConnectionPool(dsn_of(proxies), min_size=1, max_size=1, target_session_attrs=wanted) as pool:
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.alone
async def test_a_silent_server_comes_last_in_a_random_order_until_some_time_has_passed(proxies, clock):
    silent, good, _ = proxies
    silent.silent = True
    dsn = dsn_of(proxies[:2], "?load_balance_hosts=random")
    async with ConnectionPool(dsn, min_size=0, max_size=100, connect_timeout=0.4, clock=clock) as pool:

        async def open_more(condition):
            while not condition():
                await pool.warm(pool.stats().size + 1)

        await open_more(lambda: silent.accepted == 1)
        await pool.warm(40)
        assert (silent.accepted, pool.stats().failed_connects) == (1, 0)
        silent.reset()
        clock.advance(31)
        await open_more(lambda: silent.accepted == 10)
        assert good.accepted >= 30
