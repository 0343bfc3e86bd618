"""How a pool opens one connection, and what its messages may say about the server."""

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from acgsperf.addresses import checked_dsn, secrets_of, server_of
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.slot import pooled_class

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

# Connection refused, no such host, no reply; the server starts up, shuts down, or has no room for another session.
_MAY_PASS: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
)


class Connector:
    """Opens connections to one server with the options of a pool.

    Args:
        dsn: the address of the server.
        options: the options of the pool; `connect_timeout` and `init` are used.
        connect_options: keyword arguments for `asyncpg.connect`.

    Attributes:
        where: the host and port for messages, without any secret.

    Raises:
        TypeError: if asyncpg does not have one of the options, or the DSN is not a str.
        ValueError: if the DSN cannot be used; the message does not contain it.
    """

    def __init__(self, dsn: str, options: PoolOptions, connect_options: dict[str, Any]) -> None:
        if unknown := connect_options.keys() - inspect.signature(asyncpg.connect).parameters.keys():
            names = ", ".join(sorted(unknown))
            raise TypeError(f"options must be those of ConnectionPool or asyncpg.connect, got {names}")
        self._dsn = checked_dsn("dsn", dsn)
        self._options = options
        own = [str(connect_options[name]) for name in ("host", "port") if connect_options.get(name)]
        self.where = ":".join(own) or server_of(dsn)
        connection_class = pooled_class(connect_options.get("connection_class", asyncpg.Connection))
        self._connect_options: dict[str, Any] = {**connect_options, "connection_class": connection_class}

    async def connect(self) -> "Connection":
        """Open a connection within `connect_timeout`, then run `init` on it within another `connect_timeout`."""
        timeout = self._options.connect_timeout
        connection: Connection = await asyncpg.connect(self._dsn, timeout=timeout, **self._connect_options)
        if self._options.init is not None:
            try:
                async with asyncio.timeout(timeout):
                    await self._options.init(connection)
                    # If init has cancelled its own task, this raises the error.
                    await asyncio.sleep(0)
            except BaseException:
                connection.terminate()
                raise
        return connection

    @staticmethod
    def may_pass(error: Exception) -> bool:
        """Return whether a connection attempt may succeed later, because the server was not ready or not reachable."""
        return isinstance(error, _MAY_PASS)

    def describe(self, error: Exception) -> str:
        """An error as text for messages, without the password."""
        kind, text = type(error).__name__, str(error)
        # The server and the system never repeat the password. Their words may contain it by chance, if it is short.
        if not isinstance(error, asyncpg.PostgresError | OSError) and any(
            secret in text for secret in secrets_of(self._dsn, self._connect_options.get("password"))
        ):
            text = "(not shown because it contains the password)"
        return f"{kind}: {text}" if text else kind
