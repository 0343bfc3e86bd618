"""Servers that speak TLS. The embedded ones are built without it: a forwarder in front of them does."""

import ssl
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from tls_forwarder import Forwarder

from acgsperf import ConnectionPool
from acgsperf.pool.wire import wire_of
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


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


async def test_a_certificate_that_has_expired_is_refused(kind, forwarder, authority, trusted, entry):
    forwarder.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authority.issue_cert("localhost", not_after=yesterday).configure_cert(forwarder.context)
    async with forwarder.listening() as port:
        detail = await refusal(make_tier(kind, "localhost", port, trusted), entry)
    assert "certificate has expired" in detail
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

    @pytest.fixture
    async def pool(self, forwarder, trusted):
        """A pool that is given a context."""
        context = ssl.create_default_context(cafile=trusted)
        async with forwarder.listening() as port:
            dsn = f"postgresql://postgres@localhost:{port}/postgres"
            async with ConnectionPool(dsn, min_size=1, max_size=1, ssl=context) as pool:
                yield pool

    async def test_a_pool_takes_a_context(self, forwarder, pool):
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        # The check for what was said while idle sees the socket, and not the text.
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 2") == 2
        assert pool.stats().opened == 1
        assert forwarder.handshakes == 1

    async def test_a_reply_that_answers_nothing_is_refused_with_tls_as_well(self, pool):
        async with pool.acquire() as connection:
            wire = wire_of(connection._con)
            encrypted = connection._con._transport._transport
            assert encrypted.get_extra_info("ssl_object") is not None
            assert encrypted.get_protocol() is wire
            wire.data_received(b"1\0\0\0\4")
            assert wire.hung_up
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats().opened == 2
