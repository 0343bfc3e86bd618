"""How a pool opens one connection, and what its messages may say about the server."""

import asyncio
import inspect
import random
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from acgsperf.addresses import secrets_of, server_of
from acgsperf.names import resolve
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.server_address import Endpoint, ServerAddress
from acgsperf.pool.slot import pooled_class

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

# Connection refused, no such host, no reply; the server starts up, shuts down, or has no room for another session; no
# server is of the kind that `target_session_attrs` asks for.
_MAY_PASS: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    TargetServerAttributeNotMatched,
)
_SOCKET_OPTIONS: Final = {
    "keepalives_count": "TCP_KEEPCNT",
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Connector:
    """Opens connections to one server, or to one of several, with the options of a pool.

    If there are several servers, they are tried in the order of the DSN, but the one that accepted the last connection
    comes first. Each has an equal share of what remains of `connect_timeout`.

    Args:
        dsn: the DSN, for messages.
        address: what is in the DSN.
        options: the options of the pool; `connect_timeout` and `init` are used.
        connect_options: keyword arguments for `asyncpg.connect`.

    Attributes:
        where: the hosts and ports for messages, without any secret.

    Raises:
        TypeError: if asyncpg does not have one of the options.
    """

    def __init__(
        self, dsn: str, address: ServerAddress, options: PoolOptions, connect_options: Mapping[str, Any]
    ) -> None:
        if unknown := connect_options.keys() - inspect.signature(asyncpg.connect).parameters.keys():
            names = ", ".join(sorted(unknown))
            raise TypeError(f"options must be those of ConnectionPool or asyncpg.connect, got {names}")
        self._dsn = dsn
        self._address = address
        self._options = options
        own = [str(connect_options[name]) for name in ("host", "port") if connect_options.get(name)]
        self.where = ":".join(own) or server_of(dsn)
        connection_class = pooled_class(connect_options.get("connection_class", asyncpg.Connection))
        self._connect_options: dict[str, Any] = {**connect_options, "connection_class": connection_class}
        # A host that is a keyword argument replaces those of the DSN.
        self._endpoints = list(() if own else address.endpoints)
        self._attributes = str(connect_options.get("target_session_attrs") or address.session_attributes or "any")

    async def connect(self) -> "Connection":
        """Open a connection within `connect_timeout`, then run `init` on it within another `connect_timeout`."""
        timeout = self._options.connect_timeout
        connection = await (self._connect_to_one() if len(self._endpoints) > 1 else self._connect(timeout, {}))
        try:
            self._set_socket_options(connection)
            if self._options.init is not None:
                async with asyncio.timeout(timeout):
                    await self._options.init(connection)
                    # If init has cancelled its own task, this raises the error.
                    await asyncio.sleep(0)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect(self, timeout: float, choice: Endpoint) -> "Connection":  # noqa: ASYNC109
        options = {**self._connect_options, **choice}
        async with asyncio.timeout(timeout):
            for host in self._hosts(options):
                await resolve(host)
            connection: Connection = await asyncpg.connect(self._address.dsn, timeout=timeout, **options)
        return connection

    def _hosts(self, options: Mapping[str, Any]) -> "Sequence[str]":
        """Return the names that asyncpg is going to look up."""
        hosts = options.get("host") or [endpoint.get("host") for endpoint in self._endpoints]
        return [hosts] if isinstance(hosts, str) else [host for host in hosts if host]

    async def _connect_to_one(self) -> "Connection":
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._options.connect_timeout
        attempts = self._attempts()
        failure: Exception | None = None
        for position, (endpoint, attributes) in enumerate(attempts):
            share = (deadline - clock()) / (len(attempts) - position)
            if share <= 0:
                break
            try:
                connection = await self._connect(share, {**endpoint, "target_session_attrs": attributes})
            except _MAY_PASS as error:
                failure = error
                self._put_last(endpoint)
            else:
                return connection
        raise failure or TimeoutError

    def _put_last(self, failed: Endpoint) -> None:
        # So the server that accepted the last connection comes first.
        self._endpoints.sort(key=lambda endpoint: endpoint is failed)

    def _attempts(self) -> "Sequence[tuple[Endpoint, str]]":
        endpoints = random.sample(self._endpoints, len(self._endpoints)) if self._address.shuffled else self._endpoints
        # asyncpg tries the servers one by one here, so it cannot fall back to a primary itself.
        kinds = ("standby", "any") if self._attributes == "prefer-standby" else (self._attributes,)
        return [(endpoint, kind) for kind in kinds for endpoint in endpoints]

    def _set_socket_options(self, connection: "Connection") -> None:
        wanted = self._address.socket_options
        transport = getattr(connection, "_transport", None)
        sock = transport.get_extra_info("socket") if wanted and transport is not None else None
        if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        keepalives = wanted.get("keepalives", int(any(name.startswith("keepalives_") for name in wanted)))
        if keepalives or "keepalives" in wanted:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalives)
        for name, constant in _SOCKET_OPTIONS.items():
            # As in libpq, 0 means the default of the system, and an option that the system lacks is ignored.
            if wanted.get(name) and hasattr(socket, constant):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, constant), wanted[name])

    @staticmethod
    def may_pass(error: Exception) -> bool:
        """Return whether a connection attempt may succeed later, because the server was not ready or not reachable."""
        return isinstance(error, _MAY_PASS)

    def describe(self, error: Exception) -> str:
        """Return an error as text for messages, without the password."""
        kind, text = type(error).__name__, str(error)
        # The server and the system never repeat the password. But a short password may occur in their messages by
        # chance.
        if not isinstance(error, asyncpg.PostgresError | OSError) and any(
            secret in text for secret in secrets_of(self._dsn, self._connect_options.get("password"))
        ):
            text = "(not shown because it contains the password)"
        return f"{kind}: {text}" if text else kind
