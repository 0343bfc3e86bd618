"""The connections of a Redis tier: how many there are, how old they get, and who may open them."""

import asyncio
import re
import time
from contextlib import suppress

import pytest
import redis.asyncio
from proxy import Proxy

from acgsperf.testing.server_binaries import redis_program
from acgsperf.tiers import redis_connections
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_server import RedisServer


@pytest.fixture
def kind():
    return "redis"


@pytest.fixture
async def admin(private_server):
    """Another program's connection to the server."""
    async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as client:
        yield client


@pytest.fixture
async def open_tier(private_server):
    opened = []

    async def open_one(url=None, **options):
        tier = RedisTier(url or private_server.url, **{"deadline": 5, **options})
        opened.append(tier)
        await tier.open("n")
        return tier

    yield open_one
    for tier in opened:
        await tier.close()


async def clients(admin):
    return len(await admin.client_list()) - 1


async def wait_until(condition):
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_all_calls_share_a_bounded_number_of_connections(open_tier, admin, entry):
    tier = await open_tier(max_connections=3)
    before = (await admin.info("stats"))["total_connections_received"]
    locks, *_ = await asyncio.gather(
        asyncio.gather(*(tier.lock(f"k{i}", 5) for i in range(100))),
        asyncio.gather(*(tier.invalidate_tag(f"t{i}") for i in range(100))),
        asyncio.gather(*(tier.health() for _ in range(100))),
        asyncio.gather(*(tier.clear() for _ in range(20))),
        asyncio.gather(*(tier.set(f"k{i}", entry(tags=("t",))) for i in range(100))),
    )
    assert all(locks)
    assert all(await asyncio.gather(*(tier.unlock(f"k{i}", token) for i, token in enumerate(locks))))
    assert (await admin.info("stats"))["total_connections_received"] - before <= 3
    assert tier.stats().errors == {}


async def test_idle_connections_are_closed_but_a_few(open_tier, admin, monkeypatch):
    tier = await open_tier(max_connections=20)
    await asyncio.gather(*(tier.lock(f"k{i}", 5) for i in range(100)))
    assert await clients(admin) == 20
    monkeypatch.setattr(redis_connections, "MAX_IDLE_S", 0.02)
    tier.connections._close_unused()
    await wait_until(lambda: _is(clients(admin), redis_connections.KEPT_IDLE))
    assert await tier.lock("other", 5)


async def _is(answer, expected):
    return await answer == expected


async def test_a_connection_is_replaced_after_its_lifetime(open_tier):
    tier = await open_tier(max_lifetime=0.05)
    (first,) = await tier._ask([("CLIENT", "ID")], list)
    await asyncio.sleep(0.05)
    (second,) = await tier._ask([("CLIENT", "ID")], list)
    assert second > first
    tier = await open_tier()
    assert len({(await tier._ask([("CLIENT", "ID")], list))[0] for _ in range(5)}) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_credentials_are_asked_for_at_each_connect(open_tier, admin, entry, asynchronous):
    await admin.acl_setuser("app", enabled=True, passwords=["+first"], keys="*", commands=["+@all"])
    token = "first"
    asked = 0

    def sync():
        nonlocal asked
        asked += 1
        return "app", token

    async def wait():
        return sync()

    tier = await open_tier(credentials=wait if asynchronous else sync)
    # redis-py asks twice over a unix socket.
    once = asked
    assert await tier.set("k", entry())
    assert asked == once > 0
    await admin.acl_setuser("app", enabled=True, passwords=["-first", "+second"])
    token = "second"
    await admin.execute_command("CLIENT", "KILL", "USER", "app")
    assert await tier.get("k")
    assert asked == 2 * once
    assert tier.stats().errors == {}


async def test_credentials_may_be_a_password_alone(open_tier, admin, entry):
    await admin.config_set("requirepass", "secret")
    tier = await open_tier(credentials=lambda: "secret")
    assert await tier.set("k", entry())


def _fail():
    raise ValueError("the token is t0ken")


@pytest.mark.parametrize("credentials", [_fail, lambda: None, lambda: ("t0ken",), lambda: "t0ken"])
async def test_credentials_that_cannot_be_used_are_a_failure_without_their_text(
    open_tier, admin, caplog, credentials, entry
):
    await admin.config_set("requirepass", "secret")
    tier = await open_tier(credentials=credentials)
    for _ in range(4):
        assert not await tier.set("k", entry())
    assert "t0ken" not in caplog.text + (await tier.health()).detail


async def _cancelled():
    raise asyncio.CancelledError


async def test_credentials_that_were_cancelled_are_a_failure_and_cancel_no_caller(open_tier, entry):
    tier = await open_tier(credentials=_cancelled)
    assert await tier.get("k") is None
    assert not await tier.set("k", entry())
    assert await tier.lock("k", 1) is None
    assert tier.stats().errors.keys() == {"ConnectionError"}


async def test_a_server_that_does_not_know_auth_does_not_reveal_the_password(tmp_path, caplog):
    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--rename-command", "AUTH", ""]
    process = await asyncio.create_subprocess_exec(redis_program(), *options, stdout=asyncio.subprocess.DEVNULL)
    tier = RedisTier(f"unix://user:pass-word@{socket}", deadline=5)
    try:
        async with redis.asyncio.Redis(unix_socket_path=str(socket)) as client:
            await wait_until(lambda: _answers(client))
        await tier.open("n")
        detail = (await tier.health()).detail
        assert "AUTH" in detail
        assert "pass-word" not in caplog.text + detail
    finally:
        await tier.close()
        process.kill()
        await process.wait()


async def _answers(client):
    with suppress(redis.ConnectionError):
        return await client.ping()


@pytest.mark.parametrize("url", ["redis://:pass-word@localhost", "redis://user@localhost"])
def test_credentials_and_a_password_in_the_url_contradict_each_other(url):
    with pytest.raises(ValueError, match="credentials") as caught:
        RedisTier(url, credentials=lambda: "x")
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_connections": 0}, ValueError),
        ({"max_connections": 1.5}, TypeError),
        ({"max_lifetime": 0}, ValueError),
        ({"max_lifetime": float("nan")}, ValueError),
        ({"credentials": "secret"}, TypeError),
    ],
)
def test_an_option_that_is_not_valid_is_named(options, error):
    with pytest.raises(error, match=next(iter(options))):
        RedisTier("redis://localhost", **options)


async def test_the_url_may_bound_the_connections(open_tier, private_server, admin):
    tier = await open_tier(f"{private_server.url}?max_connections=2")
    await asyncio.gather(*(tier.lock(f"k{i}", 5) for i in range(20)))
    assert await clients(admin) == 2


async def test_a_caller_that_is_cancelled_while_it_waits_keeps_no_connection(open_tier):
    tier = await open_tier(max_connections=1)
    for turns in range(12):
        calls = [asyncio.ensure_future(tier.lock(f"{turns}-{i}", 0.01)) for i in range(6)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls[:5]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await tier.lock("k", 5)
    assert tier.connections._size <= 1


async def test_closing_while_callers_wait_answers_them_and_leaves_nothing(open_tier, admin):
    tier = await open_tier(max_connections=2)
    calls = [asyncio.ensure_future(tier.lock(f"k{i}", 5)) for i in range(20)]
    await asyncio.sleep(0)
    await tier.close()
    await asyncio.wait_for(asyncio.gather(*calls), 5)
    await wait_until(lambda: _is(clients(admin), 0))
    assert tier.connections._size == 0
    assert tier.connections._idle == []


async def test_connections_that_were_dropped_silently_cost_one_deadline(open_tier, private_server, entry):
    async with Proxy(f"{private_server.folder}/redis.sock") as proxy:
        tier = await open_tier(f"redis://127.0.0.1:{proxy.port}", deadline=0.5)
        await asyncio.gather(*(tier.lock(f"k{i}", 5) for i in range(20)))
        assert await tier.set("k", entry())
        assert proxy.accepted > 5
        proxy.drop_all()
        started = time.monotonic()
        missed = 0
        while await tier.get("k") is None:
            missed += 1
        assert missed <= 1
        assert time.monotonic() - started < 1
        await tier.close()


async def test_a_clone_has_connections_of_its_own_and_no_greeting(open_tier, admin):
    tier = await open_tier(max_connections=1)
    clone = tier.connections.clone(1)
    clone.open()
    assert clone.greeting is None
    blocked = asyncio.ensure_future(clone.ask([("BLPOP", "nothing", 0)], list))
    await wait_until(lambda: _is(clients(admin), 2))
    assert await tier.lock("k", 5)
    await admin.rpush("nothing", "something")
    assert await blocked == [[b"nothing", b"something"]]
    clone.close()


async def test_a_connection_learns_the_time_of_its_server_first(open_tier, admin):
    tier = await open_tier()
    seconds, micros = await admin.time()
    assert abs(tier.server_clock.now() - seconds - micros / 1e6) < 1


async def test_reads_ask_for_the_time_once_a_minute(open_tier, admin):
    tier = await open_tier()

    async def asked():
        return (await admin.info("commandstats"))["cmdstat_time"]["calls"]

    await tier.get("k")
    before = await asked()
    for _ in range(20):
        await tier.get("k")
    assert await asked() == before
    tier.server_clock._asked_at -= 61
    tier._ask_role_at -= 1
    for _ in range(20):
        await tier.get("k")
    assert await asked() == before + 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost?foo=1", "has the unknown option 'foo'; known are client_name, db, "),
        ("redis://localhost?redis_connect_func=x", "has the unknown option 'redis_connect_func'; known are"),
        ("redis://localhost?credential_provider=x", "has the unknown option 'credential_provider'; known are"),
        ("redis://localhost?encoding=nonsense", "has the unknown option 'encoding'; known are"),
        ("redis://localhost?ssl_ca_certs=x", "has the unknown option 'ssl_ca_certs'; known are"),
        ("unix:///a.sock?db=-1", "has a db that is not valid: it must be a number of at least 0"),
        ("redis://localhost?db=x", "has a db that is not valid: it must be a number of at least 0"),
        ("redis://localhost?client_name=a%20b", "has a client_name that is not valid: it must be printable ASCII"),
        (
            "redis://localhost?socket_timeout=x",
            "has a socket_timeout that is not valid: it must be a number of seconds",
        ),
        ("rediss://localhost?ssl_cert_reqs=foo", "has a ssl_cert_reqs that is not valid: it must be none, optional or"),
    ],
)
def test_an_option_of_the_url_that_is_not_valid_is_named(url, message):
    with pytest.raises(ValueError, match=re.escape(f"the Redis URL {message}")):
        RedisTier(url)


def test_the_rest_of_a_password_is_not_named_as_an_option():
    with pytest.raises(ValueError, match="unknown option") as caught:
        RedisTier("redis://user:12?S3cret=4@localhost/")
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    ["protocol=3&retry_on_timeout=yes&decode_responses=true&socket_timeout=1.5&health_check_interval=3", "db=7"],
)
def test_options_that_other_clients_need_are_accepted(options):
    RedisTier(f"redis://localhost?{options}")


def test_a_new_connection_reads_no_file(monkeypatch):
    server = RedisServer("redis://localhost")

    def fail(name):
        raise AssertionError(f"the version of {name} was looked up again")

    monkeypatch.setattr("importlib.metadata.version", fail)
    assert server.new().driver_info is server.new().driver_info
