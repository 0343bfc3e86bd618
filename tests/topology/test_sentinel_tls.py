"""Sentinels and servers that speak TLS: `rediss+sentinel://`.

The embedded server is built without TLS. So one half of the tests puts a forwarder in front of it, and a sentinel that
speaks TLS beside it; the other half uses a `redis-server` of the machine, if there is one that was built with TLS.
"""

import asyncio
import ssl
from contextlib import ExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest
import trustme
from tls_forwarder import Forwarder

from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache
from acgsperf.tiers import redis_tls
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_sentinel import redis_server
from acgsperf.workbench.doctor import Severity, examine
from topology.sentinel_servers import TLS, Watched, tls_program

# A context for TLS costs 20 ms of computing for each connection, and more on a busy machine.
_DEADLINE_S = 15


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, scratch):
    """The file of the authority that the client trusts."""
    path = scratch / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


def context_of(authority, name="localhost"):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@asynccontextmanager
async def sentinel(port, context):
    """One that tells everyone that the primary of the service `main` is at a port of localhost; its own port."""
    state = {"name": "main", "ip": "localhost", "port": port, "flags": "master", "num-other-sentinels": 0}
    items = [part for pair in state.items() for part in map(str, pair)]
    masters = f"*1\r\n*{len(items)}\r\n" + "".join(f"${len(item)}\r\n{item}\r\n" for item in items)

    async def answer(reader, writer):
        try:
            while (line := await reader.readline()).startswith(b"*"):
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    word = (await reader.readexactly(size + 2))[:-2]
                writer.write(masters.encode() if word.upper() == b"MASTERS" else b"+OK\r\n")
            # As a server without TLS does, if it is asked for it.
            writer.write(b"-ERR unknown command\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def health_of(url, entry, deadline=_DEADLINE_S):
    """What a tier says of its server, after a write; and whether that was stored."""
    tier = RedisTier(url, deadline=deadline)
    await tier.open("tls")
    stored = await tier.set("k", entry("v"))
    if stored:
        assert (await tier.get("k")).value == "v"
    health = await tier.health()
    await tier.close()
    assert health.ok is stored
    return stored, health.detail


@pytest.fixture
def socket(servers):
    return urlsplit(servers.redis_url).path


async def test_sentinels_and_their_server_are_asked_over_tls(socket, authority, trusted, entry):
    forwarder = Forwarder("redis", socket, context_of(authority))
    async with forwarder.listening() as port, sentinel(port, context_of(authority)) as own:
        stored, _ = await health_of(f"rediss+sentinel://localhost:{own}/main?ssl_ca_certs={trusted}", entry)
    assert stored
    assert forwarder.handshakes >= 1
    assert forwarder.plain == 0


@pytest.mark.parametrize(("name", "stored"), [("localhost", True), ("elsewhere", False)])
async def test_the_former_cache_asks_them_over_tls(socket, authority, trusted, name, stored, caplog):
    forwarder = Forwarder("redis", socket, context_of(authority, name))
    async with forwarder.listening() as port, sentinel(port, context_of(authority)) as own:
        cache = await create_ultra_fast_cache(f"rediss+sentinel://localhost:{own}/main?ssl_ca_certs={trusted}")
        assert (cache.redis_client is not None) is stored
        assert stored or "certificate is not valid for 'localhost'" in caplog.text
        await cache.close()
    assert (forwarder.handshakes > 0) is stored


@pytest.mark.parametrize("refused", ["sentinel", "server"])
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("authority", "certificate verify failed"),
        ("name", "certificate is not valid for 'localhost'"),
        ("plaintext", "does not speak TLS"),
    ],
)
async def test_a_server_that_cannot_be_trusted_is_refused(socket, authority, trusted, entry, refused, wrong, problem):
    contexts = {
        "authority": context_of(trustme.CA()),
        "name": context_of(authority, "elsewhere"),
        "plaintext": None,
    }
    right = context_of(authority)
    forwarder = Forwarder("redis", socket, contexts[wrong] if refused == "server" else right)
    of_sentinel = contexts[wrong] if refused == "sentinel" else right
    async with forwarder.listening() as port, sentinel(port, of_sentinel) as own:
        url = f"rediss+sentinel://:pass-word@localhost:{own}/main?ssl_ca_certs={trusted}"
        # A server that does not know TLS waits for the end of a command, so each call takes all of its time.
        stored, detail = await health_of(url, entry, 2 if contexts[wrong] is None else _DEADLINE_S)
        found = {finding.subject: finding async for finding in examine({"REDIS_URL": url})}["Redis"]
    assert not stored
    assert forwarder.handshakes == 0
    assert found.severity is Severity.ERROR
    for text in (detail, found.detail):
        assert problem in text
        # The message names the server. After a timeout, it names the sentinels that lead there.
        assert f"localhost:{own if refused == 'sentinel' else port}" in text or "no answer within" in text
        assert "\n" not in text
        assert "pass-word" not in text


def test_connections_to_the_nodes_of_a_cluster_share_it():
    one, other = (redis_server("rediss+cluster://h") for _ in range(2))
    assert other is not one
    assert other.new().ssl_context.get() is one.new().ssl_context.get()


@pytest.mark.parametrize("url", ["rediss://h", "rediss+sentinel://h/main"])
def test_connections_share_what_was_read_from_certificate_files_for_a_minute(url, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(redis_tls, "monotonic", lambda: now)
    server = redis_server(url)
    first, second = (server.new().ssl_context.get() for _ in range(2))
    assert second is first
    assert first.check_hostname
    now += 61
    assert server.new().ssl_context.get() is not first


@pytest.fixture
async def watched(scratch, authority, trusted):
    files = scratch / "certificate.pem", scratch / "key.pem"
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    with ExitStack() as stack:
        servers = Watched(scratch, stack, tls=TLS(tls_program(), trusted, *files))
        await servers.ready()
        yield servers


async def test_servers_of_their_own_kind_speak_tls_through_a_failover(watched, namespace, entry, until):
    tier = RedisTier(watched.url, deadline=5)
    await tier.open(namespace)
    assert await tier.set("k", entry())
    assert (await tier.get("k")).value == "v"
    found = {finding.subject: finding async for finding in examine({"REDIS_URL": watched.url})}["Redis"]
    assert "primary with 1 replica" in found.detail
    watched.kill(0)
    await watched.elected()

    async def is_stored():
        return await tier.set("k", entry("new"))

    await until(is_stored, 60)
    assert (await tier.get("k")).value == "new"
    await tier.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda url: url.partition("?")[0], "certificate verify failed"),
        (lambda url: url.replace("127.0.0.1", "localhost"), "certificate is not valid for 'localhost'"),
        (lambda url: url.partition("?")[0].replace("rediss", "redis"), "no sentinel names a primary of the service"),
    ],
)
async def test_servers_of_their_own_kind_are_refused_if_they_cannot_be_trusted(watched, entry, change, problem):
    stored, detail = await health_of(change(watched.url), entry)
    assert not stored
    assert problem in detail
