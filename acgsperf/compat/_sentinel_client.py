"""A redis-py client of the primary that sentinels name."""

from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from acgsperf.tiers.redis_sentinel import SENTINEL_SCHEMES, SentinelServer, redis_server

__all__ = ["explained", "has_schemes_of_its_own", "sentinel_client"]


class _ToPrimary(Connection):
    """Asks the sentinels before it connects.

    Args:
        server: knows the primary.
        options: those of redis-py.
    """

    def __init__(self, *, server: SentinelServer, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        server.tls.give(self)

    async def connect(self) -> None:
        """Connect, unless the connection leads to the primary already."""
        if self.is_connected and f"{self.host}:{self.port}" != self._server.address:
            # It does not know yet that it has been replaced, and would accept writes.
            await self.disconnect(nowait=True)
        if not self.is_connected:
            await self._server.locate(self)
            try:
                await super().connect()  # type: ignore[no-untyped-call]
            except RedisConnectionError:
                self._server.forget()
                raise

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read a reply; leave a server that has become a replica."""
        try:
            return await super().read_response(*arguments, **options)
        except ReadOnlyError as error:
            self._server.forget()
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"the server became a replica: {error}") from error


class _ToPrimaryOverTLS(_ToPrimary, SSLConnection):
    """The same, over TLS."""


def has_schemes_of_its_own(url: object) -> bool:
    """Return whether a URL has a scheme that redis-py does not know, such as `redis+sentinel`."""
    return "+" in str(url).partition("://")[0]


def sentinel_client(url: str) -> Redis:
    """Return a client for the URL of sentinels. It connects to the primary that they name.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """
    if not url.startswith(tuple(f"{scheme}:" for scheme in SENTINEL_SCHEMES)):
        scheme = url.partition("://")[0]
        raise ValueError(
            f"redis_url must be the URL of a single server, of its sentinels or of a cluster, got {scheme}://"
        )
    server = redis_server(url)
    assert isinstance(server, SentinelServer)
    # RESP2 has no push messages, so a reply always belongs to its command. Retries would delay a miss.
    pool = ConnectionPool.from_url(server.url_of("sentinel", 1), protocol=2, retry=Retry(NoBackoff(), 0))
    over_tls = issubclass(pool.connection_class, SSLConnection)
    if over_tls:
        pool.connection_kwargs.setdefault("ssl_check_hostname", True)
    pool.connection_class = _ToPrimaryOverTLS if over_tls else _ToPrimary
    pool.connection_kwargs["server"] = server
    return Redis.from_pool(pool)


def explained(error: Exception) -> str:
    """Return why a client of sentinels or of a cluster is not usable, without a password."""
    # A Redis that does not know AUTH repeats its arguments, among which is the password.
    return str(error).partition(", with args")[0] or type(error).__name__
