"""Servers that speak TLS. The embedded ones are built without it: a forwarder in front of them does."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from acgsperf import ConnectionPool
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Forwarder:
    """Takes TLS off, and passes the rest to the unix socket of a server."""

    def __init__(self, kind, socket, context):
        self.kind = kind
        self.socket = socket
        self.context = context
        self.handshakes = 0
        self.plain = 0
        self._serving = set()

    @asynccontextmanager
    async def listening(self):
        """The port, on the loopback interface."""
        # PostgreSQL begins in plain text, and is asked for TLS.
        context = self.context if self.kind == "redis" else None
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader, writer):
        inner = None
        self._serving.add(asyncio.current_task())
        try:
            inner_reader, inner = await asyncio.open_unix_connection(self.socket)
            if self.kind == "postgres" and self.context is not None:
                first = await reader.readexactly(len(SSL_REQUEST))
                if first != SSL_REQUEST:
                    self.plain += 1
                    return
                writer.write(b"S")
                await writer.start_tls(self.context)
            self.handshakes += self.context is not None
            await asyncio.gather(self._pass(reader, inner), self._pass(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, inner):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    """The file of the authority that the client trusts."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def forwarder(kind, private_server, authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    parts = urlsplit(private_server.url)
    socket = parts.path if kind == "redis" else parse_qs(parts.query)["host"][0] + "/.s.PGSQL.5432"
    return Forwarder(kind, socket, context)


def make_tier(kind, host, port, trusted):
    if kind == "redis":
        trust = f"?ssl_ca_certs={trusted}" if trusted else ""
        return RedisTier(f"rediss://{host}:{port}{trust}", deadline=5)
    options = f"sslmode=verify-full&sslrootcert={trusted}"
    return PostgresTier(f"postgresql://postgres@{host}:{port}/postgres?{options}", deadline=5)


async def test_a_server_that_shows_the_right_certificate_is_used(kind, forwarder, trusted, entry):
    async with forwarder.listening() as port:
        tier = make_tier(kind, "localhost", port, trusted)
        await tier.open("tls")
        assert await tier.set("k", entry("v"))
        assert (await tier.get("k")).value == "v"
        assert tier.stats().errors == {}
        await tier.close()
    assert forwarder.handshakes >= 1


async def refusal(tier, entry):
    """Why a tier does without its server."""
    await tier.open("tls")
    assert not await tier.set("k", entry("v"))
    health = await tier.health()
    await tier.close()
    assert not health.ok
    return health.detail


async def test_a_certificate_for_another_name_is_refused(kind, forwarder, trusted, entry):
    async with forwarder.listening() as port:
        # It is for localhost.
        detail = await refusal(make_tier(kind, "127.0.0.1", port, trusted), entry)
    assert "certificate is not valid for '127.0.0.1'" in detail
    assert forwarder.handshakes == forwarder.plain == 0


async def test_a_certificate_of_an_unknown_authority_is_refused(kind, forwarder, trusted, entry):
    trustme.CA().cert_pem.write_to_path(trusted)
    async with forwarder.listening() as port:
        detail = await refusal(make_tier(kind, "localhost", port, trusted), entry)
    assert "certificate verify failed" in detail
    assert forwarder.handshakes == forwarder.plain == 0


class TestRedis:
    """What only Redis has: where no authority is named, those of the system are trusted."""

    @pytest.fixture
    def kind(self):
        return "redis"

    async def test_an_authority_that_the_system_does_not_know_is_refused(self, forwarder, entry):
        async with forwarder.listening() as port:
            assert "certificate verify failed" in await refusal(make_tier("redis", "localhost", port, None), entry)
        assert forwarder.handshakes == 0


class TestPostgres:
    """What only PostgreSQL has: TLS on request, and a pool to use directly."""

    @pytest.fixture
    def kind(self):
        return "postgres"

    async def test_a_server_without_tls_is_refused_where_it_is_demanded(self, forwarder, trusted, entry):
        forwarder.context = None
        async with forwarder.listening() as port:
            detail = await refusal(make_tier("postgres", "localhost", port, trusted), entry)
        assert "rejected SSL upgrade" in detail

    async def test_a_pool_takes_a_context(self, forwarder, trusted):
        context = ssl.create_default_context(cafile=trusted)
        async with forwarder.listening() as port:
            dsn = f"postgresql://postgres@localhost:{port}/postgres"
            async with ConnectionPool(dsn, min_size=1, max_size=1, ssl=context) as pool:
                async with pool.acquire() as connection:
                    assert await connection.fetchval("SELECT 1") == 1
                # The check for what was said while idle sees the socket, and not the text.
                async with pool.acquire() as connection:
                    assert await connection.fetchval("SELECT 2") == 2
                assert pool.stats().opened == 1
        assert forwarder.handshakes == 1


async def answer_as_sentinel(reader, writer, port):
    """Tell everyone that the primary of the service `main` is at a port of localhost."""
    state = {"name": "main", "ip": "localhost", "port": port, "flags": "master", "num-other-sentinels": 0}
    items = [part for pair in state.items() for part in map(str, pair)]
    masters = f"*1\r\n*{len(items)}\r\n" + "".join(f"${len(item)}\r\n{item}\r\n" for item in items)
    try:
        while line := await reader.readline():
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                word = (await reader.readexactly(size + 2))[:-2]
            writer.write(masters.encode() if word.upper() == b"MASTERS" else b"+OK\r\n")
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("kind", ["redis"])
@pytest.mark.parametrize("trusts", [True, False])
async def test_sentinels_and_their_server_are_asked_over_tls(kind, forwarder, trusted, entry, trusts):
    async with forwarder.listening() as port:
        sentinel = await asyncio.start_server(
            lambda reader, writer: answer_as_sentinel(reader, writer, port), "127.0.0.1", 0, ssl=forwarder.context
        )
        async with sentinel:
            host = f"localhost:{sentinel.sockets[0].getsockname()[1]}"
            trust = f"?ssl_ca_certs={trusted}" if trusts else ""
            tier = RedisTier(f"rediss+sentinel://{host}/main{trust}", deadline=5)
            await tier.open("tls")
            assert await tier.set("k", entry("v")) is trusts
            assert (forwarder.handshakes > 0) is trusts
            detail = (await tier.health()).detail
            assert trusts or "certificate" in detail.lower()
            await tier.close()
